"""Objectives: the goldens' whole objectives, weights and schedules, masks, two heads, and what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import distill, losses
from jaxkd.distill import Objective, Term, preset
from jaxkd.errors import ConfigError, TapError, UnknownNameError

PAIRS = (("block_0", "block_1"), ("block_2", "block_5"))
SETTINGS = [(1.0, 0.9, 1.0, 0.2), (3.0, 0.5, 2.0, 0.05)]  # temperature, alpha, beta, weight of the goldens


def nhwc(x):
    return jnp.asarray(np.transpose(x, (0, 2, 3, 1)))


def golden_case(g, key):
    student = (jnp.asarray(g["student_logits"]), {s: nhwc(g[f"{key}_fs{i}"]) for i, (s, _) in enumerate(PAIRS)})
    teacher = (jnp.asarray(g["teacher_logits"]), {t: nhwc(g[f"{key}_ft{i}"]) for i, (_, t) in enumerate(PAIRS)})
    return student, teacher, {"label": jnp.asarray(g["labels"])}


def random_case(batch=4, classes=5, channels=(6, 12)):
    keys = jax.random.split(jax.random.key(0), 6)
    student = (
        jax.random.normal(keys[0], (batch, classes)),
        {s: jax.random.normal(k, (batch, 4, 4, channels[0])) for k, (s, _) in zip(keys[1:3], PAIRS, strict=True)},
    )
    teacher = (
        jax.random.normal(keys[3], (batch, classes)),
        {t: jax.random.normal(k, (batch, 4, 4, channels[1])) for k, (_, t) in zip(keys[4:], PAIRS, strict=True)},
    )
    return student, teacher, {"label": jnp.arange(batch) % classes}


@pytest.mark.parametrize("method", [None, "closed", "fft"])
@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize(("temperature", "alpha", "beta", "weight"), SETTINGS)
def test_goldens_with_logits(golden, kind, temperature, alpha, beta, weight, method):
    g = golden("kd_losses")
    key = f"{kind}_tau{temperature}_alpha{alpha}_beta{beta}_w{weight}"
    objective = preset(
        f"{kind}+spectral",
        pairs=PAIRS,
        alpha=alpha,
        feature_weight=beta * weight,
        spectral_method=method,
        **({"temperature": temperature} if kind == "soft" else {}),
    )
    loss, terms, _ = objective({}, {}, *golden_case(g, key), step=0)
    logit = "kl" if kind == "soft" else "hard"
    ours = [terms["ce_weighted"], terms["spectral_weighted"], terms[f"{logit}_weighted"]]
    np.testing.assert_allclose(ours, g[key], rtol=1e-5)
    np.testing.assert_allclose(loss, g[key].sum(), rtol=1e-5)


@pytest.mark.parametrize(("temperature", "alpha", "beta", "weight"), SETTINGS)
def test_goldens_without_logits(golden, temperature, alpha, beta, weight):
    g = golden("kd_losses")
    key = f"fft_tau{temperature}_alpha{alpha}_beta{beta}_w{weight}"
    objective = preset("spectral", pairs=PAIRS, feature_weight=beta * weight, ce_weight=1 - alpha)
    loss, terms, _ = objective({}, {}, *golden_case(g, key), step=0)
    np.testing.assert_allclose([terms["ce_weighted"], terms["spectral_weighted"]], g[key], rtol=1e-5)
    np.testing.assert_allclose(loss, g[key].sum(), rtol=1e-5)


WEIGHTS = {  # the published weights, written out
    "none": {"ce": 1.0},
    "soft": {"ce": 0.1, "kl": 0.9},
    "hard": {"ce": 0.1, "hard": 0.9},
    "spectral": {"ce": 1.0, "spectral": 0.2},
    "mse": {"ce": 1.0, "mse": 0.2},
    "soft+spectral": {"ce": 0.1, "kl": 0.9, "spectral": 0.2},
    "soft+mse": {"ce": 0.1, "kl": 0.9, "mse": 0.2},
    "hard+spectral": {"ce": 0.1, "hard": 0.9, "spectral": 0.2},
    "hard+mse": {"ce": 0.1, "hard": 0.9, "mse": 0.2},
}


def test_every_preset_is_tested():
    assert set(distill.PRESETS) == set(WEIGHTS)


@pytest.mark.parametrize("name", WEIGHTS)
def test_presets_are_these_terms_with_these_weights(name):
    student, teacher, batch = random_case()
    pairs = PAIRS if "spectral" in name or "mse" in name else ()
    objective = preset(name, pairs=pairs)
    assert objective.needs_teacher == (name != "none")
    assert objective.student_taps == tuple(s for s, _ in pairs)
    assert objective.teacher_taps == tuple(t for _, t in pairs)
    loss, terms, _ = jax.jit(objective)({}, {}, student, teacher, batch, jnp.int32(3))

    def features(fn):
        return sum(fn(student[1][s], teacher[1][t]).mean() for s, t in PAIRS) / 2

    expected = {
        "ce": losses.cross_entropy(student[0], batch["label"], smoothing=0.1).mean(),
        "kl": losses.kl(student[0], teacher[0]).mean(),
        "hard": losses.hard(student[0], teacher[0]).mean(),
        "spectral": features(losses.spectral),
        "mse": features(losses.feature_mse),
    }
    assert set(terms) == set(WEIGHTS[name]) | {f"{n}_weighted" for n in WEIGHTS[name]}
    for term, weight in WEIGHTS[name].items():
        np.testing.assert_allclose(terms[term], expected[term], rtol=1e-5)
        np.testing.assert_allclose(terms[f"{term}_weighted"], weight * expected[term], rtol=1e-5)
    np.testing.assert_allclose(loss, sum(w * expected[t] for t, w in WEIGHTS[name].items()), rtol=1e-5)


def test_none_needs_no_teacher():
    student, _, batch = random_case()
    loss, terms, _ = preset("none", smoothing=0.0)({}, {}, student, None, batch, 0)
    np.testing.assert_allclose(loss, losses.cross_entropy(student[0], batch["label"]).mean(), rtol=1e-6)
    assert set(terms) == {"ce", "ce_weighted"}


def test_schedules_follow_the_step_and_ce_follows_alpha():
    student, teacher, batch = random_case()
    objective = preset(
        "soft+mse",
        pairs=PAIRS,
        alpha={"schedule": "linear", "from": 1.0, "to": 0.0, "end_step": 10},
        feature_weight={"schedule": "step", "from": 0.2, "to": 0.0, "start_step": 5},
    )
    run = jax.jit(objective)
    for step, alpha, feature in ((0, 1.0, 0.2), (4, 0.6, 0.2), (5, 0.5, 0.0), (20, 0.0, 0.0)):
        loss, terms, _ = run({}, {}, student, teacher, batch, jnp.int32(step))
        np.testing.assert_allclose(terms["kl_weighted"], alpha * terms["kl"], rtol=1e-5)
        np.testing.assert_allclose(terms["ce_weighted"], (1 - alpha) * terms["ce"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(terms["mse_weighted"], feature * terms["mse"], rtol=1e-5)
        np.testing.assert_allclose(loss, terms["kl_weighted"] + terms["ce_weighted"] + terms["mse_weighted"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["soft+spectral", "hard+mse"])
def test_the_mask_leaves_out_examples_in_value_and_gradient(name):
    student, teacher, batch = random_case(batch=4)
    objective = preset(name, pairs=PAIRS)
    where = jnp.array([True, True, False, True])
    keep = jnp.array([0, 1, 3])

    def loss(s, t, b):
        return objective({}, {}, s, t, b, 0)[0]

    spoilt = jax.tree.map(lambda x: x.at[2].set(jnp.nan), (student, teacher))
    value, grad = jax.value_and_grad(loss)(*spoilt, {"label": batch["label"].at[2].set(-1), "mask": where})
    rest = jax.tree.map(lambda x: x[keep], (student, teacher, batch))
    expected, expected_grad = jax.value_and_grad(loss)(*rest)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(grad), jax.tree.leaves(expected_grad), strict=True):
        np.testing.assert_array_equal(ours[2], 0.0)
        np.testing.assert_allclose(ours[keep], theirs, rtol=1e-5, atol=1e-8)
    nothing, terms, _ = objective({}, {}, *spoilt, {"label": batch["label"], "mask": jnp.zeros(4, bool)}, 0)
    assert float(nothing) == 0.0 and all(float(v) == 0.0 for v in terms.values())


def test_two_heads_learn_from_labels_and_from_the_teacher():
    (first, features), teacher, batch = random_case()
    second = jax.random.normal(jax.random.key(9), first.shape)
    student = ((first, second), features)
    for name, logit in (("soft", losses.kl), ("hard", losses.hard)):
        _, terms, _ = preset(name)({}, {}, student, teacher, batch, 0)
        ce = losses.cross_entropy(first, batch["label"], smoothing=0.1).mean()
        np.testing.assert_allclose(terms["ce"], ce, rtol=1e-6)
        np.testing.assert_allclose(
            terms["kl" if name == "soft" else "hard"], logit(second, teacher[0]).mean(), rtol=1e-6
        )
    # without a logit term nothing else would teach the second head
    _, terms, _ = preset("mse", pairs=PAIRS)({}, {}, student, teacher, batch, 0)
    ce = losses.cross_entropy((first + second) / 2, batch["label"], smoothing=0.1).mean()
    np.testing.assert_allclose(terms["ce"], ce, rtol=1e-6)
    # a teacher with two heads answers with their mean
    _, terms, _ = preset("soft")({}, {}, (first, features), ((second, -first), {}), batch, 0)
    np.testing.assert_allclose(terms["kl"], losses.kl(first, (second - first) / 2).mean(), rtol=1e-5)


def test_soft_labels():
    student, teacher, _ = random_case()
    probabilities = jax.nn.softmax(teacher[0])
    _, terms, _ = preset("none", smoothing=0.0)({}, {}, student, None, {"label": probabilities}, 0)
    expected = losses.cross_entropy(student[0], probabilities).mean()
    np.testing.assert_allclose(terms["ce"], expected, rtol=1e-6)


def test_own_terms():
    def norm(student, teacher, batch):
        return jnp.square(student[0]).sum(1)

    objective = Objective((Term("norm", lambda step: 0.5 * step, norm, needs_teacher=False),), ("a", "b", "a"))
    assert objective.student_taps == ("a", "b") and not objective.needs_teacher
    loss, terms, _ = objective({}, {}, (jnp.array([[1.0, 2.0], [0.0, 1.0]]), {}), None, {}, 4)
    assert (float(loss), float(terms["norm"]), float(terms["norm_weighted"])) == (6.0, 3.0, 6.0)


def test_shared_taps_are_asked_for_once():
    objective = preset("mse", pairs=(("block_1", "block_2"), ("block_1", "block_3")))
    assert objective.student_taps == ("block_1",) and objective.teacher_taps == ("block_2", "block_3")


LOGITS, FEATURES = {"alpha": 0.9, "temperature": 1.0}, {"pairs": PAIRS, "feature_weight": 0.2}


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *itertools.product(["none"], [*LOGITS, *FEATURES, "spectral_method"]),
        *itertools.product(["soft"], [*FEATURES, "spectral_method"]),
        *itertools.product(["spectral"], LOGITS),
        ("mse", "spectral_method"),
        ("soft+mse", "spectral_method"),
        ("hard", "temperature"),
        ("hard+spectral", "temperature"),
    ],
)
def test_a_setting_that_is_never_read_is_refused(name, setting):
    value = {**LOGITS, **FEATURES, "spectral_method": "fft"}[setting]
    needed = {"pairs": PAIRS} if ("spectral" in name or "mse" in name) and setting != "pairs" else {}
    with pytest.raises(
        ConfigError, match=rf'{setting}=.* the objective "{name.replace("+", chr(92) + "+")}" has no use'
    ):
        preset(name, **needed, **{setting: value})


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        (
            {"name": "spectrl"},
            UnknownNameError,
            r'"spectrl" is not an objective. Did you mean "spectral".*soft\+spectral',
        ),
        ({"name": "soft+spectral"}, ConfigError, r"compares features, but no layers are paired.*Give pairs"),
        ({"name": "mse", "pairs": "last"}, ConfigError, r"not pairs of taps.*resolve_pairs"),
        ({"name": "mse", "pairs": ((0, 0),)}, ConfigError, r"not pairs of taps.*resolve_pairs"),
        ({"name": "mse", "pairs": (0, 0)}, ConfigError, r"not pairs of taps"),
        ({"name": "soft", "alpha": 1.5}, ConfigError, r"alpha=1.5 is out of range.*at least 0 and at most 1"),
        ({"name": "mse", "pairs": PAIRS, "feature_weight": -1}, ConfigError, r"feature_weight=-1 is out of range"),
        ({"name": "soft", "temperature": 0.0}, ConfigError, r"temperature=0.0 is out of range"),
        ({"name": "none", "smoothing": 1.0}, ConfigError, r"smoothing=1.0 is out of range"),
        ({"name": "spectral", "pairs": PAIRS, "spectral_method": "dct"}, UnknownNameError, r'method="dct"'),
        ({"name": "none", "ce_weight": {"schedule": "cos"}}, UnknownNameError, r"ce_weight has schedule='cos'"),
    ],
)
def test_preset_errors(kwargs, error, text):
    with pytest.raises(error, match=text):
        preset(**kwargs)


def test_objective_errors():
    student, teacher, batch = random_case()
    with pytest.raises(ConfigError, match=r"without a teacher, but its terms kl, spectral compare with one"):
        preset("soft+spectral", pairs=PAIRS)({}, {}, student, None, batch, 0)
    with pytest.raises(TapError, match=r'reads "block_5" of the teacher.*block_1.*taps=objective.teacher_taps'):
        preset("mse", pairs=PAIRS)({}, {}, student, (teacher[0], {"block_1": teacher[1]["block_1"]}), batch, 0)
    with pytest.raises(TapError, match=r'reads "block_0" of the student.*no features'):
        preset("mse", pairs=PAIRS)({}, {}, (student[0], {}), teacher, batch, 0)

    def fn(s, t, b):
        return s[0]

    for names in ((), ("a", "a"), ("a", "a_weighted"), ("loss",)):
        with pytest.raises(ConfigError, match=r"must be at least one and all of these must differ"):
            Objective(tuple(Term(n, 1.0, fn) for n in names))
    with pytest.raises(ConfigError, match=r'the weight of "a"=-1 is out of range'):
        Objective((Term("a", -1, fn),))
