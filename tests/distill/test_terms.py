"""Terms by name: what a config may write, terms with parameters and state, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import distill, losses
from jaxkd.config import presets
from jaxkd.distill import terms as registry
from jaxkd.errors import ConfigError, UnknownNameError

PAIRS = (("block_0", "block_1"), ("block_2", "block_5"))


@pytest.fixture
def case():
    keys = jax.random.split(jax.random.key(0), 6)
    student, teacher = (
        (
            jax.random.normal(keys[3 * side], (4, 5)),
            {p[side]: jax.random.normal(keys[3 * side + 1 + i], (4, 4, 4, 6)) for i, p in enumerate(PAIRS)},
        )
        for side in (0, 1)
    )
    return student, teacher, {"label": jnp.arange(4)}


@pytest.fixture
def new_terms():
    """Forgets what a test registers."""
    before = dict(registry.TERMS)
    yield
    registry.TERMS.clear()
    registry.TERMS.update(before)


def test_terms_are_summed_with_their_weights_arguments_and_names(case):
    student, teacher, batch = case
    objective = distill.build_objective(
        (
            {"loss": "ce", "weight": 0.3, "smoothing": 0.0},
            {"loss": "kl", "weight": {"schedule": "linear", "from": 1.0, "to": 0.0, "end_step": 10}, "temperature": 2},
            {"loss": "mse", "name": "early", "pairs": PAIRS[:1]},
            {"loss": "mse", "name": "late", "weight": 0.5, "pairs": PAIRS[1:]},
        ),
    )
    assert objective.student_taps == ("block_0", "block_2") and objective.teacher_taps == ("block_1", "block_5")
    loss, logged, state = objective({}, {}, student, teacher, batch, 4)
    expected = {
        "ce": (0.3, losses.cross_entropy(student[0], batch["label"], smoothing=0.0)),
        "kl": (0.6, losses.kl(student[0], teacher[0], temperature=2.0)),
        "early": (1.0, losses.feature_mse(student[1]["block_0"], teacher[1]["block_1"])),
        "late": (0.5, losses.feature_mse(student[1]["block_2"], teacher[1]["block_5"])),
    }
    assert state == {} and objective.init(jax.random.key(0), (student, teacher)) == ({}, {})
    assert set(logged) == {f"{name}{end}" for name in expected for end in ("", "_weighted")}
    for name, (weight, value) in expected.items():
        np.testing.assert_allclose(logged[name], value.mean(), rtol=1e-6)
        np.testing.assert_allclose(logged[f"{name}_weighted"], weight * value.mean(), rtol=1e-6)
    np.testing.assert_allclose(loss, sum(w * v.mean() for w, v in expected.values()), rtol=1e-6)


@pytest.mark.parametrize("name", distill.PRESETS)
def test_a_preset_is_its_terms_bit_for_bit(case, name):
    """Against the formula with its weights in fp32: 1 - 0.9 is 0.100000024 there, as in earlier runs."""
    student, teacher, batch = case
    logit, feature = presets.parts(name)
    pairs = PAIRS if feature else ()
    loss, logged, _ = distill.preset(name, pairs=pairs)({}, {}, student, teacher, batch, 0)
    ce = losses.cross_entropy(student[0], batch["label"], smoothing=0.1).mean()
    expected = (1.0 - jnp.float32(0.9) if logit else jnp.float32(1.0)) * ce
    assert float(logged["ce_weighted"]) == float(expected)
    if logit:
        fn = {"kl": losses.kl, "hard": losses.hard}[logit]
        expected += jnp.float32(0.9) * fn(student[0], teacher[0]).mean()
    if feature:
        fn = {"spectral": losses.spectral, "mse": losses.feature_mse}[feature]
        values = [fn(student[1][s], teacher[1][t]) for s, t in PAIRS]
        expected += jnp.float32(0.2) * (sum(values[1:], start=values[0]) / 2).mean()
    assert float(loss) == float(expected)
    entries = presets.expand(name)
    again = distill.build_objective(entries, pairs=pairs)({}, {}, student, teacher, batch, 0)
    assert float(again[0]) == float(loss) and [e["loss"] for e in entries] == [k for k in logged if "_" not in k]


def test_a_new_term_is_one_function_and_one_registration(case, new_terms):
    @distill.register_term("logit_mse", compares_logits=True)
    def logit_mse(student, teacher, batch, *, scale=1.0):
        return scale * jnp.square(student[0] - teacher[0]).mean(axis=1)

    student, teacher, batch = case
    objective = distill.build_objective(({"loss": "logit_mse", "weight": 0.5, "scale": 3.0},))
    assert objective.needs_teacher and objective.compares_logits
    loss, _, _ = objective({}, {}, student, teacher, batch, 0)
    np.testing.assert_allclose(loss, 1.5 * np.mean((student[0] - teacher[0]) ** 2), rtol=1e-6)
    with pytest.raises(ConfigError, match=r'"logit_mse" is registered already'):
        distill.register_term("logit_mse")(logit_mse)


def stateless(student, teacher, batch, *, scale=1.0):
    return scale * student[0].mean(axis=1)


def stateful(params, mutable, student, teacher, batch, *, pairs):
    return student[0].mean(axis=1), mutable


class Stateless:
    def __call__(self, student, teacher, batch, *, scale=1.0):
        return scale * student[0].mean(axis=1)


@pytest.mark.parametrize(
    ("fn", "options", "text"),
    [
        (
            stateful,
            {},
            r"\*, pairs\), but would be called with \(student, .*\), or give register_term init=",
        ),
        (stateless, {"init": lambda key, student, teacher: ({}, {})}, r"called with \(params, .*or leave init= out"),
        (stateful, {"init": lambda key, *, pairs: ({}, {})}, r"The init of .* takes \(key, \*, pairs\), but"),
        (
            stateful,
            {"init": lambda key, student, teacher: ({}, {})},
            r"teacher\), but .*\(key, student, teacher, \*, pairs\)",
        ),
        (stateless, {"needs_key": True}, r'passes key= too. Put "key" behind the star: \(student, .*, key\)'),
        (lambda student, teacher, batch, key, /: key, {"needs_key": True}, r"/\), but needs_key=True passes key="),
        (lambda student, teacher, key, batch: key, {"needs_key": True}, r"key, batch\), but needs_key=True passes"),
        (lambda student, teacher, batch, key: key, {}, r"no key would be passed. Give register_term needs_key=True"),
        (Stateless, {}, r"registered with the class Stateless. Pass a function, or an instance"),
        (stateful, {"init": Stateless}, r"registered with the class Stateless"),
        (lambda student, teacher, batch, *, key: key, {}, r"no key would be passed. Give register_term needs_key=True"),
        (3, {}, r"registered with 3, whose arguments are unknown"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(new_terms, fn, options, text):
    with pytest.raises(ConfigError, match=text):
        distill.register_term("mine", **options)(fn)
    assert "mine" not in registry.TERMS


def test_a_key_may_be_positional_and_a_term_an_instance(case, new_terms):
    @distill.register_term("noisy", needs_key=True)
    def noisy(student, teacher, batch, key):
        return student[0].mean(axis=1) + jax.random.normal(key)

    distill.register_term("called")(Stateless())
    objective = distill.build_objective(({"loss": "noisy"}, {"loss": "called", "scale": 2.0}))
    _, logged, _ = objective({}, {}, *case, 0, key=jax.random.key(1))
    np.testing.assert_allclose(logged["called"], 2.0 * case[0][0].mean(), rtol=1e-5)
    assert abs(logged["noisy"] - case[0][0].mean()) > 1e-3


def test_an_init_needs_only_the_arguments_that_it_is_given(case, new_terms):
    distill.register_term("mine", init=lambda key, student, teacher: ({}, {}))(
        lambda params, mutable, student, teacher, batch, *, eps=1e-6: (student[0].mean(axis=1) + eps, mutable)
    )
    assert distill.build_objective(({"loss": "mine"},)).init(jax.random.key(0), case[:2])[0] == {"mine": {}}
    with pytest.raises(ConfigError, match=r"terms\[0\] .* sets the argument eps, which the init of the term does not"):
        distill.build_objective(({"loss": "mine", "eps": 0.1},))


def test_configs_know_what_each_term_of_this_package_reads():
    for name, read in presets.READ_BY_TERM.items():
        assert {"pairs", "smoothing"} & set(registry.TERMS[name].arguments) == set(read), name


@pytest.mark.parametrize(
    ("entry", "error", "text"),
    [
        ({"loss": "spectrl"}, UnknownNameError, r'distill.terms\[0\] has the loss "spectrl".*Did you mean "spectral"'),
        ({"loss": "kl", "temprature": 2.0}, ConfigError, r'"temprature", which it does not take. Did you mean "temper'),
        ({"loss": "hard", "temperature": 2.0}, ConfigError, r'loss "hard".*"temperature", which it does not take'),
        ({"loss": "mse"}, ConfigError, r"compares features, but no layers are paired"),
        ({"loss": "mse", "pairs": "last"}, ConfigError, r"not pairs of taps"),
        ({"loss": "kl", "temperature": 0.0}, ConfigError, r"temperature=0.0 is out of range"),
        ({"loss": "ce", "smoothing": 1.0}, ConfigError, r"smoothing=1.0 is out of range"),
        ({"loss": "spectral", "pairs": PAIRS, "method": "dct"}, UnknownNameError, r'method="dct"'),
        ({"loss": "ce", "weight": -1}, ConfigError, r'the weight of "ce"=-1 is out of range'),
        ({"weight": 1.0}, ConfigError, r"distill.terms\[0\]=.*is not a term"),
        ("kl", ConfigError, r"distill.terms\[0\]='kl' is not a term"),
    ],
)
def test_errors(entry, error, text):
    with pytest.raises(error, match=text):
        distill.build_objective((entry,))


def test_an_argument_without_default_has_to_be_given(new_terms):
    @distill.register_term("scaled", needs_teacher=False)
    def scaled(student, teacher, batch, *, scale):
        return scale * student[0][:, 0]

    with pytest.raises(ConfigError, match=r'\(loss "scaled"\) lacks the argument scale'):
        distill.build_objective(({"loss": "scaled"},))
