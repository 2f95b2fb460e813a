"""Relations of tokens and of examples, and the contrastive loss: golden cases, traps, errors, real networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_variables

from jaxkd import losses, models
from jaxkd.errors import ConfigError, ShapeError
from tests.losses import zoo_cases

PAIRS = ("attention_kl", "attention_cosine", "manifold_intra", "manifold_inter", "similarity_preserving", "pkt")
PAIRS += ("rkd_distance", "rkd_angle", "correlation_congruence", "linear_cka")
BATCH_LEVEL = ("rkd_distance", "rkd_angle", "similarity_preserving", "pkt", "correlation_congruence", "linear_cka")
OTHERS = ("relation_kl", "manifold_random", "contrastive")


def call_of(name):
    """The case as a function of (inputs, where)."""
    function = name.split("/")[0]
    hyper = {key: value for key, value in zoo_cases.hyper(name).items() if key != "tied"}
    loss = getattr(losses, function)

    def call(x, where):
        if function == "relation_kl":
            split = ({k[-1]: v for k, v in x.items() if k.startswith(owner)} for owner in ("student", "teacher"))
            return loss(*split, where=where, **hyper)
        if function == "manifold_random":
            return loss(x["student"], x["teacher"], x["indices"], where=where, **hyper)
        if function == "contrastive":
            owners = ("student", "teacher")
            both = (losses.project(x[o], x[f"{o}_kernel"], x[f"{o}_bias"], where=where) for o in owners)
            return loss(*both, where=where, **hyper)
        return loss(x["student"], x["teacher"], where=where, **hyper)

    return call


@pytest.mark.parametrize("name", zoo_cases.names(*PAIRS, *OTHERS))
def test_golden(name):
    # 1 - CKA is the difference of numbers near 1
    tolerance = 2e-5 if name.startswith("linear_cka") else 1e-5
    # The goldens have no mask of manifold_random; the next test has.
    masked = not name.startswith("manifold_random")
    zoo_cases.check(name, call_of(name), loss_tolerance=tolerance, masked=masked)


def test_manifold_random_with_a_mask_is_that_of_the_tokens_left():
    x = zoo_cases.arrays("manifold_random/default")
    where = np.array([True, False, True, True, True, False])
    kept = x["indices"][where[x["indices"] // 9]]
    assert 1 < len(kept) < len(x["indices"])
    spoilt = {key: np.where(where[:, None, None], x[key], np.nan) for key in ("student", "teacher")}
    loss = jax.jit(jax.value_and_grad(losses.manifold_random))
    value, gradient = loss(spoilt["student"], spoilt["teacher"], x["indices"], where=jnp.asarray(where))
    expected, expected_gradient = loss(x["student"], x["teacher"], kept)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7)
    for outside in (-1, 54):
        indices = np.where(np.arange(len(kept)) == 1, outside, kept)
        assert np.isnan(loss(x["student"], x["teacher"], indices)[0])


def finite(loss, *arrays, **options):
    """Value and gradients, which are finite, of all arrays."""
    arrays = tuple(map(jnp.asarray, arrays))
    total = jax.value_and_grad(lambda *a: jnp.sum(loss(*a, **options)), argnums=tuple(range(len(arrays))))
    value, gradients = jax.jit(total)(*arrays)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
    return value, gradients


@pytest.mark.parametrize("name", [*BATCH_LEVEL, "contrastive", "manifold_inter"])
def test_degenerate_batches_have_finite_values_and_slopes(name):
    """One example, a constant batch, zeros, equal rows, two networks that agree, no example left by the mask."""
    total = lambda *a, where: jnp.sum(getattr(losses, name)(*a, where=where))  # noqa: E731
    both = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    rows = np.random.default_rng(0).normal(size=(7, 3, 5) if name == "manifold_inter" else (7, 300)).astype(np.float32)
    constant = np.repeat(rows[:1], 7, axis=0)  # its mean in fp32 is not exactly its rows
    everybody, one, nobody = np.ones(7, bool), np.arange(7) == 2, np.zeros(7, bool)
    for student in (rows, constant, 0 * rows, rows[[0, 1, 1, 3, 4, 5, 6]]):
        for teacher in (student, rows[::-1]):
            for a, b, where in ((student, teacher, everybody), (teacher, student, one), (student, teacher, nobody)):
                value, slopes = both(a, b, where=where)
                assert np.isfinite(value) and all(np.abs(slope).max() < 1e3 for slope in slopes)
                pairless = name == "linear_cka" and (student is constant or not student.any() or where is not everybody)
                if pairless or where is nobody:
                    np.testing.assert_allclose(value, name == "linear_cka", atol=1e-6)
                    assert not any(np.asarray(slope).any() for slope in slopes)
    value, slopes = both(rows[:1], rows[1:2], where=None)
    assert np.isfinite(value) and all(np.isfinite(slope).all() for slope in slopes)


def test_zeros_in_attention():
    """Masked keys, a row without any key, and probability where the other network has none."""
    student = np.full((2, 2, 4, 4), 0.25, np.float32)
    teacher = student.copy()
    student[0, :, :, 2:], teacher[0, :, :, 2:] = 0.0, 0.0
    student[1, 0, 0], teacher[1, 0, 0] = 0.0, 0.0
    for loss, expected in ((losses.attention_kl, 0.0), (losses.attention_cosine, 0.125)):  # one of 8 rows has no cosine
        value, _ = finite(loss, student, teacher)
        np.testing.assert_allclose(value, expected, atol=1e-6)
        finite(loss, teacher, np.roll(teacher, 1, axis=-1))


def test_relation_of_extreme_values_is_finite():
    x = 1e3 * np.random.default_rng(0).normal(size=(2, 2, 5, 4)).astype(np.float32)
    loss = lambda s, t: losses.relation_kl({"v": s}, {"v": t}, relation_heads=4, relations=("vv",))  # noqa: E731
    finite(loss, x, x[::-1])
    assert finite(loss, x, x)[0] == 0


def test_relation_of_one_network_does_not_depend_on_its_heads():
    """(B, 2, N, 6) and (B, 3, N, 4) with the same 12 channels per token are the same to relation heads."""
    rng = np.random.default_rng(0)
    tokens, other = rng.normal(size=(2, 2, 5, 12)).astype(np.float32)
    split = lambda x, heads: {"k": x.reshape(2, 5, heads, -1).swapaxes(1, 2)}  # noqa: E731
    values = [
        losses.relation_kl(split(tokens, heads), split(other, 2), relation_heads=6, relations=("kk",))
        for heads in (2, 3)
    ]
    np.testing.assert_allclose(*values, rtol=1e-6)
    assert values[0].min() > 0.01


def test_pkt_without_the_diagonal_is_the_papers():
    x, y = np.random.default_rng(0).normal(size=(2, 5, 6))

    def probabilities(z):
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        kernel = (1 + z @ z.T) / 2
        np.fill_diagonal(kernel, 0)
        return kernel / kernel.sum(axis=1, keepdims=True)

    p, q = probabilities(y), probabilities(x)
    off = ~np.eye(5, dtype=bool)
    expected = np.sum(p[off] * np.log(p[off] / q[off])) / 25
    np.testing.assert_allclose(losses.pkt(x, y, diagonal=False), expected, rtol=1e-4)
    assert abs(losses.pkt(x, y) / expected - 1) > 0.1


@pytest.mark.parametrize("name", [*BATCH_LEVEL, "manifold_intra"])
def test_half_precision_is_computed_in_fp32_and_double_stays(name):
    def dtype_of(dtype):
        x = jax.ShapeDtypeStruct((4, 3, 5), dtype)
        return jax.eval_shape(getattr(losses, name), x, x).dtype

    assert dtype_of(jnp.bfloat16) == jnp.float32
    with jax.enable_x64(True):
        assert dtype_of(jnp.float64) == jnp.float64


def relation(student, teacher, **options):
    return losses.relation_kl(
        {k: jnp.zeros(s) for k, s in student.items()}, {k: jnp.zeros(s) for k, s in teacher.items()}, **options
    )


VALUE = {"v": (2, 3, 5, 4)}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: losses.attention_kl(jnp.zeros((2, 3, 5, 5)), jnp.zeros((2, 4, 5, 5))), ShapeError, '3 and 4.*"mean"'),
        (lambda: losses.attention_cosine(jnp.zeros((2, 3, 5, 5)), jnp.zeros((2, 3, 4, 4))), ShapeError, "same patches"),
        (lambda: losses.attention_kl(jnp.zeros((2, 3, 5, 4)), jnp.zeros((2, 3, 5, 4))), ShapeError, "tokens, tokens"),
        (lambda: losses.attention_kl(*jnp.ones((2, 1, 1, 2, 2)), heads="all"), ConfigError, 'heads="all"'),
        (lambda: relation(VALUE, VALUE, relation_heads=5, relations=("vv",)), ShapeError, "5 do not divide.*12"),
        (lambda: relation(VALUE, VALUE, relation_heads=0, relations=("vv",)), ConfigError, "relation_heads=0"),
        (lambda: relation(VALUE, VALUE, relation_heads=3), ShapeError, 'student has no "k", only v.*query_i'),
        (lambda: relation(VALUE, VALUE, relation_heads=3, relations="vv"), ConfigError, 'relations="qk"|not a list'),
        (lambda: relation(VALUE, VALUE, relation_heads=3, relations=("vx",)), ConfigError, "not a list of pairs"),
        (
            lambda: relation(VALUE, {"v": (2, 3, 4, 4)}, relation_heads=3, relations=("vv",)),
            ShapeError,
            "Cut the prefix tokens",
        ),
        (lambda: losses.manifold_intra(jnp.zeros((2, 5, 3)), jnp.zeros((2, 4, 3))), ShapeError, r"\(5,\) and \(4,\)"),
        (lambda: losses.manifold_random(*jnp.zeros((2, 2, 4, 3)), jnp.zeros(3)), ShapeError, "replace=False"),
        (lambda: losses.pkt(jnp.zeros((2, 3)), jnp.zeros((3, 3))), ShapeError, "of the same batch"),
        (lambda: losses.linear_cka(jnp.zeros(3), jnp.zeros(3)), ShapeError, "of the same batch"),
        (lambda: losses.rkd_angle(*jnp.zeros((2, 2, 3)), eps=0.0), ConfigError, "eps=0.0"),
        (lambda: losses.correlation_congruence(*jnp.zeros((2, 2, 3)), order=0), ConfigError, "order=0"),
        (lambda: losses.contrastive(jnp.zeros((2, 3)), jnp.zeros((2, 4))), ShapeError, "project both"),
        (lambda: losses.contrastive(*jnp.zeros((2, 2, 3)), temperature=0.0), ConfigError, "temperature=0.0"),
        (lambda: losses.rkd_distance(*jnp.zeros((2, 2, 3)), where=jnp.ones(2)), ShapeError, "Pass a bool array"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_minilm_on_a_deit_and_a_cait():
    """Relations of the taps of two networks of other widths and heads; the student's class token is left out."""
    sizes = {"img_size": 32, "patch_size": 8, "depth": 1, "num_classes": 3}
    student = models.create("deit_tiny_patch16_224", embed_dim=12, num_heads=3, **sizes)
    teacher = models.create("cait_xxs24_224", embed_dim=16, num_heads=2, depth_token_only=1, **sizes)
    taps = {"q": "query_0", "k": "key_0", "v": "value_0"}
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    found = []
    for model in (student, teacher):
        _, features = jax.jit(lambda v, x, m=model: m.apply(v, x, taps=tuple(taps.values())))(
            random_variables(model, size=32), images
        )
        found.append({key: features[tap][:, :, -16:] for key, tap in taps.items()})
    value = losses.relation_kl(*found, relation_heads=4)
    assert value.shape == (2,) and (np.asarray(value) > 0).all()
