"""Every term by the one line that docs/objectives.md gives: it builds, and everything that should gets a gradient."""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import distill, losses, models, tasks, weights
from jaxkd.distill import terms as registry
from jaxkd.errors import ConfigError, JaxkdError, ShapeError, TapError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "objectives.md"
LINES = {
    name: ast.literal_eval(line)
    for name, line in re.findall(r"^\| `(\w+)` \| `(\{\"loss\".*?\})` \|", DOCS.read_text(), re.MULTILINE)
}
CLASSES, BATCH = 5, 4
STUDENT = {"embed_dim": 24, "num_heads": 2, "depth": 2, "patch_size": 8}
TEACHER = {"embed_dim": 36, "num_heads": 2, "depth": 3, "depth_token_only": 1, "patch_size": 8}


def network(name, seed, **args):
    model = models.create(name, num_classes=CLASSES, img_size=32, **args)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    return weights.Network(model, models.spec(name), (32, 32), CLASSES, variables, "random weights")


@pytest.fixture(scope="module")
def networks():
    return network("deit_tiny_distilled_patch16_224", 1, **STUDENT), network("cait_xxs24_224", 2, **TEACHER)


def objective_of(networks, *entries):
    """The objective of entries whose pairs are written as in a config."""
    taps = [models.tap_names(n.model) for n in networks]
    resolved = [
        entry | {"pairs": distill.resolve_pairs(entry["pairs"], *taps)} if "pairs" in entry else entry
        for entry in entries
    ]
    return distill.build_objective(resolved, smoothing=0.1)


@pytest.fixture(scope="module")
def results(networks):
    """term -> (loss, gradients of the term's parameters, gradients of the student's outputs), in one program."""
    objectives = {name: objective_of(networks, line) for name, line in LINES.items()}
    together = objective_of(networks, *LINES.values())
    with warnings.catch_warnings():  # JAX 0.12 warns of shapes of 64 bits
        warnings.simplefilter("error")
        tasks.check_networks(*networks, together)
    student, teacher = networks
    rng = np.random.default_rng(3)
    images = jnp.asarray(rng.normal(size=(BATCH, 32, 32, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, CLASSES, BATCH))

    def run(images):
        outputs = (
            student.model.apply(student.variables, images, taps=together.student_taps, distilled=True),
            teacher.model.apply(teacher.variables, images, taps=together.teacher_taps),
        )
        found = {}
        for name, objective in objectives.items():
            taps = objective.student_taps, objective.teacher_taps
            s, t = ((o[0], {tap: o[1][tap] for tap in read}) for o, read in zip(outputs, taps, strict=True))
            params, mutable = objective.init(jax.random.key(4), (s, t))

            def loss(params, s, objective=objective, mutable=mutable, t=t):
                return objective(params, mutable, s, t, {"label": labels}, 0, key=jax.random.key(5))[0]

            found[name] = jax.value_and_grad(loss, argnums=(0, 1))(params, s)
        return found

    return jax.device_get(jax.jit(run)(images))


def test_every_term_has_a_row():
    assert set(LINES) == set(registry.TERMS) and len(LINES) == 32
    assert all(line["loss"] == name for name, line in LINES.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_loss_and_gradients_are_finite_and_reach_the_student_and_every_parameter(results, name):
    loss, (params, outputs) = results[name]
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((params, outputs)))
    assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(outputs))
    for path, grad in jax.tree.leaves_with_path(params):
        assert np.abs(grad).max() > 0, path
    parametric = "hint vid mgd vitkd_mimic vitkd_generation simkd contrastive feature_cosine normalized_mse"
    assert bool(params) == (name in parametric.split())


def vectors(batch=6, nan=False):
    rng = np.random.default_rng(0)
    s, t = (jnp.asarray(rng.normal(size=(batch, 2, 3, c)), jnp.float32) for c in (4, 5))
    logits = (jnp.asarray(rng.normal(size=(batch, CLASSES)), jnp.float32) for _ in range(2))
    student, teacher = (next(logits), {"block_0": s}), (next(logits), {"block_1": t})
    return jax.tree.map(lambda x: x.at[1].set(jnp.nan), (student, teacher)) if nan else (student, teacher)


# Losses of the batch, and some of the examples. All 36 tokens are drawn, in an order that does not matter.
MASKED = {name: {"loss": name} for name in re.findall(r"^\| `(\w+)` .* \| batch \|", DOCS.read_text(), re.MULTILINE)}
MASKED |= {"rkd_distance of tokens": {"loss": "rkd_distance", "pool": False}}
MASKED |= {"manifold_random": {"loss": "manifold_random", "samples": 36}, "simkd": {"loss": "simkd"}}
MASKED |= {"contrastive": {"loss": "contrastive", "width": 8}}
MASKED |= {name: {"loss": name} for name in ("kl", "spectral", "mse", "hint")}


@pytest.fixture(scope="module")
def masked():
    """name -> ((loss, gradients) of a batch with a mask, those of the examples that count), in one program."""
    where = np.array([True, False, True, True, True, True])
    objectives = {k: distill.build_objective((v,), pairs=(("block_0", "block_1"),)) for k, v in MASKED.items()}
    started = {k: v.init(jax.random.key(4), vectors()) for k, v in objectives.items()}

    def gradients(name, student, teacher, batch):
        params, mutable = started[name]

        def loss(params, student):
            return objectives[name](params, mutable, student, teacher, batch, 0, key=jax.random.key(5))[0]

        return jax.value_and_grad(loss, argnums=(0, 1))(params, student)

    def run(whole, rest):
        return {name: (gradients(name, *whole, {"mask": where}), gradients(name, *rest, {})) for name in objectives}

    return jax.device_get(jax.jit(run)(vectors(nan=True), jax.tree.map(lambda x: x[where], vectors())))


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_leaves_out_examples_in_value_and_gradients(masked, name):
    """Images that pad the last batch, and those that a member of a population does not learn from."""
    (loss, (params, outputs)), (expected, (params_of_rest, outputs_of_rest)) = masked[name]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert loss > 0 and any(np.abs(x).max() > 0 for x in jax.tree.leaves(outputs))
    for path, grad in jax.tree.leaves_with_path(params):
        assert np.abs(grad).max() > 0, path
    for whole, rest in zip(jax.tree.leaves(outputs), jax.tree.leaves(outputs_of_rest), strict=True):
        np.testing.assert_array_equal(whole[1], 0.0)
        np.testing.assert_allclose(np.delete(whole, 1, axis=0), rest, rtol=1e-4, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, params_of_rest)


def test_masks_come_from_the_key_of_the_step():
    student, teacher = vectors()
    objective = distill.build_objective(({"loss": "mgd", "ratio": 0.5},), pairs=(("block_0", "block_1"),))
    params, mutable = objective.init(jax.random.key(0), (student, teacher))
    first, again, other = (
        float(objective(params, mutable, student, teacher, {}, 0, key=jax.random.key(k))[0]) for k in (1, 1, 2)
    )
    assert first == again != other
    with pytest.raises(ConfigError, match="its terms mgd draw random numbers"):
        objective(params, mutable, student, teacher, {}, 0)


@pytest.mark.parametrize(
    ("entry", "error", "text"),
    [
        (
            {"loss": "attention_cosine", "pairs": "last"},
            ShapeError,
            'The term "attention_cosine" does not fit.*18 tokens',
        ),
        ({"loss": "attention_kl", "pairs": (("attn_0", "attn_9"),)}, TapError, "names layer \"?'?attn_9"),
        ({"loss": "relation_kl", "pairs": "last"}, ConfigError, "lacks the argument relation_heads"),
        (
            {"loss": "relation_kl", "pairs": "last", "relation_heads": 7, "surplus": "drop"},
            JaxkdError,
            'The term "relation_kl" does not fit these networks.*7',
        ),
        ({"loss": "hint", "pairs": "last", "projector": "mlp"}, ConfigError, '"projector", which it does not take'),
        ({"loss": "attention_kl", "pairs": "last", "surplus": "cut"}, ConfigError, 'surplus="cut" is not possible'),
        ({"loss": "contrastive", "pairs": "last", "width": 0}, ConfigError, "width=0 is out of range"),
        ({"loss": "mgd", "pairs": "last", "ratio": 2.0}, ConfigError, 'The term "mgd" does not fit.*ratio=2.0'),
        ({"loss": "mgd", "pairs": (("pre_logits", "pre_logits"),)}, ShapeError, "mgd needs maps"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_compiles(networks, entry, error, text):
    with pytest.raises(error, match=text):
        tasks.check_networks(*networks, objective_of(networks, entry))


def test_a_term_of_a_user_that_fails_is_named_with_its_line(networks, monkeypatch):
    monkeypatch.setattr(registry, "TERMS", dict(registry.TERMS))

    @distill.register_term("gap")
    def gap(student, teacher, batch, *, pairs):
        return (student[1][pairs[0][0]] - teacher[1][pairs[0][1]]).mean(axis=(1, 2, 3))  # 24 and 36 channels

    line = gap.__code__.co_firstlineno + 2
    with pytest.raises(
        ConfigError, match=rf'"gap" fails .*\(test_zoo_terms.py, line {line}\): .*24\).*36.* Pair layers'
    ):
        tasks.check_networks(*networks, objective_of(networks, {"loss": "gap", "pairs": "last"}))

    @distill.register_term("misspelt")
    def misspelt(student, teacher, batch):
        return studnt[0].mean(axis=1)  # noqa: F821

    with pytest.raises(ConfigError, match=r"\(test_zoo_terms.py, line \d+\): NameError: .*'studnt' is not.*\. Pair"):
        tasks.check_networks(*networks, objective_of(networks, {"loss": "misspelt"}))


ODD = (-1, 1.5, 6, 10**9, 10**400, float("nan"), float("inf"), "x", "", "False", None, True, (), {"a": 1}, [1, 2])


@pytest.mark.parametrize("name", LINES)
def test_odd_values_of_any_argument_are_accepted_or_refused_in_words(name):
    """Whether the text "False" is true, for instance, is never decided in silence."""
    kind = registry.TERMS[name]
    for argument in (*kind.arguments, *kind.options, "weight", "name"):
        default = kind.arguments[argument].default if argument in kind.arguments else None
        for value in ODD:
            entry = LINES[name] | {"pairs": (("block_0", "block_0"),)} if "pairs" in kind.arguments else LINES[name]
            try:
                distill.build_objective((entry | {argument: value},), pairs=())
            except JaxkdError as error:
                assert str(error)
            else:
                assert not isinstance(default, bool) or value is True, (argument, value)
                assert not isinstance(default, float) or isinstance(value, int | float), (argument, value)


def test_a_variance_that_cannot_start_is_refused(networks):
    with pytest.raises(ConfigError, match="eps of vid=6"):
        tasks.check_networks(*networks, objective_of(networks, {"loss": "vid", "pairs": "last", "eps": 6}))


@pytest.mark.parametrize("tap", ["lifted", "lifted_10", "stage_3"])
def test_the_map_of_a_projector_or_a_stage_is_no_attention(tap):
    for entry in ({"loss": "attention_kl"}, {"loss": "relation_kl", "relation_heads": 2}):
        with pytest.raises(ConfigError, match=f'but the pair names "{tap}", the map of a'):
            distill.build_objective((entry,), pairs=((tap, "block_3"),))


def test_a_token_of_its_own_and_integer_labels_are_needed(networks):
    plain = network("deit_tiny_patch16_224", 1, **STUDENT)
    with pytest.raises(ConfigError, match='"distillation_token" reads two heads, but the student has one'):
        tasks.check_networks(plain, networks[1], objective_of(networks, {"loss": "distillation_token"}))
    decoupled = objective_of(networks, {"loss": "decoupled_kl"})
    tasks.check_networks(*networks, decoupled)
    with pytest.raises(ShapeError, match="Switch mixup and cutmix off"):
        tasks.check_networks(*networks, decoupled, mixed=True)


def test_the_shorter_attention_is_compared_with_the_last_tokens_of_the_longer():
    rng = np.random.default_rng(0)
    long, short = (jax.nn.softmax(jnp.asarray(rng.normal(size=(2, 3, n, n)), jnp.float32)) for n in (6, 5))
    outputs = (jnp.zeros((2, 3)), {"attn_0": long}), (jnp.zeros((2, 3)), {"attn_1": short})
    entry = {"loss": "attention_kl", "surplus": "drop"}
    objective = distill.build_objective((entry,), pairs=(("block_0", "block_1"),))
    assert objective.pairs == (("attn_0", "attn_1"),)
    cut = long[..., 1:, 1:] / long[..., 1:, 1:].sum(axis=-1, keepdims=True)
    expected = losses.attention_kl(cut, short).mean()
    np.testing.assert_allclose(objective({}, {}, *outputs, {}, 0)[0], expected, rtol=1e-5)


@pytest.mark.slow
def test_a_task_gives_its_terms_the_key_of_the_step(networks):
    entries = {"loss": "ce"}, {"loss": "mgd", "pairs": "last", "ratio": 0.5}
    task = tasks.DistillationTask(*networks, objective_of(networks, *entries))
    params, mutable = task.init(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.zeros(2, jnp.int32)}
    run = jax.jit(lambda key: task.loss(params, mutable, batch, key, 0, task.constants)[1][0])
    first, again, other = (jax.device_get(run(jax.random.key(k))) for k in (1, 1, 2))
    assert first == again and first["ce"] == other["ce"] and first["mgd"] != other["mgd"]
