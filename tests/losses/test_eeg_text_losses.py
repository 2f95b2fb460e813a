"""Losses between EEG and text: golden values and slopes, masks, degenerate batches, several right answers, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ConfigError, ShapeError

KINDS = ("mean_log", "log_mean", "log_sum", "masked")
CASES = ("clip", "vocab", "siglip", *(f"multi_{kind}" for kind in KINDS))


def masked_mean(values, where):
    return jnp.sum(values) / (len(values) if where is None else jnp.sum(where))


def case(golden, name, dtype):
    """(loss as a function of its trained arguments, those arguments, golden names of their slopes)."""
    g = golden("eeg_text")
    number = lambda key: jnp.asarray(g[key], dtype)  # noqa: E731
    eeg, text, scale, vocab = map(number, ("clip_eeg", "clip_text", "clip_log_scale", "vocab"))
    word, positive = jnp.asarray(g["vocab_word"], jnp.int32), jnp.asarray(g["multi_positive"] > 0)
    if name == "clip":
        return lambda a, b, s: losses.info_nce(a, b, s).mean(), (eeg, text, scale), ("eeg", "text", "log_scale")
    if name == "vocab":
        where = jnp.asarray(g["vocab_where"] > 0)
        loss = lambda a, v, s: masked_mean(losses.info_nce_vocabulary(a, v, word, s, where=where), where)  # noqa: E731
        return loss, (eeg, vocab, scale), ("eeg", "vocab", "log_scale")
    if name == "siglip":
        one_hot = word[:, None] == jnp.arange(len(vocab))
        loss = lambda a, v, s, b: losses.siglip(a, v, one_hot, s, b).mean()  # noqa: E731
        start = (eeg, vocab, number("siglip_log_scale"), number("siglip_bias"))
        return loss, start, ("eeg", "vocab", "log_scale", "bias")
    kind = name.removeprefix("multi_")
    loss = lambda a, b, s: losses.info_nce_multi(a, b, positive, s, kind).mean()  # noqa: E731
    return loss, (eeg, text, scale), ("eeg", "text", "log_scale")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_golden_values_and_slopes(golden, name, dtype):
    g, tolerance = golden("eeg_text"), {"rtol": 1e-9, "atol": 1e-9} if dtype == np.float64 else {"atol": 1e-6}
    tolerance = {"rtol": 1e-5} | tolerance
    with jax.enable_x64(dtype == np.float64):
        loss, start, names = case(golden, name, dtype)
        value, slopes = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(start)))))(*start)
        assert value.dtype == dtype
        np.testing.assert_allclose(value, g[f"{name}_loss"], **tolerance)
        for slope, key in zip(slopes, names, strict=True):
            np.testing.assert_allclose(slope, g[f"{name}_grad_{key}"], **tolerance, err_msg=key)


def test_rows_are_the_golden_ones(golden):
    g = golden("eeg_text")
    rows = losses.info_nce_vocabulary(g["clip_eeg"], g["vocab"], g["vocab_word"], g["clip_log_scale"])
    np.testing.assert_allclose(rows, g["vocab_loss_rows"], rtol=1e-5)
    # Of the rows alone; the columns are the rows of the transposed logits.
    logits = g["clip_logits"]
    columns = np.log(np.exp(logits.T).sum(1)) - np.diag(logits)
    both = losses.info_nce(g["clip_eeg"], g["clip_text"], g["clip_log_scale"])
    np.testing.assert_allclose(both, (g["clip_loss_rows"] + columns) / 2, rtol=1e-5)


def test_the_log_scale_is_clipped_as_in_the_golden_file(golden):
    g = golden("eeg_text")
    clipped = losses.clip_log_scale(jnp.asarray(g["clamp_in"]))
    np.testing.assert_allclose(clipped, g["clamp_out"], rtol=1e-6)
    np.testing.assert_allclose(np.exp(clipped), g["clamp_scale"], rtol=1e-5)


def calls():
    """name -> loss of (eeg, text, positive, where), all of one batch."""
    word = lambda p: jnp.argmax(p, axis=1)  # noqa: E731
    return {
        "info_nce": lambda e, t, p, w: losses.info_nce(e, t, 2.0, where=w),
        "vocabulary": lambda e, t, p, w: losses.info_nce_vocabulary(e, t, word(p), 2.0, where=w),
        "siglip": lambda e, t, p, w: losses.siglip(e, t, p, 2.0, -3.0, where=w, text_where=w),
        **{kind: lambda e, t, p, w, kind=kind: losses.info_nce_multi(e, t, p, 2.0, kind, where=w) for kind in KINDS},
    }


@pytest.mark.parametrize("name", [n for n in calls() if n != "vocabulary"])
def test_a_mask_leaves_the_batch_of_the_others(name):
    rng = np.random.default_rng(3)
    eeg, text = rng.normal(size=(2, 9, 5)).astype(np.float32)
    ids = rng.integers(0, 4, 9)
    positive, where = ids[:, None] == ids[None], np.arange(9) % 3 != 1
    spoilt = [np.where(where[:, None], x, np.nan) for x in (eeg, text)]
    loss = calls()[name]
    total = jax.value_and_grad(lambda e, t, p, w: loss(e, t, p, w).sum(), argnums=(0, 1))
    value, slopes = total(*map(jnp.asarray, (*spoilt, positive, where)))
    kept = (eeg[where], text[where], positive[np.ix_(where, where)])
    expected, expected_slopes = total(*map(jnp.asarray, kept), None)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for slope, wanted in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(slope[where], wanted, rtol=1e-4, atol=1e-6)
        assert (np.asarray(slope)[~where] == 0).all()
    assert (np.asarray(loss(*map(jnp.asarray, (*spoilt, positive, where))))[~where] == 0).all()


@pytest.mark.parametrize("name", calls())
def test_degenerate_batches_have_finite_values_and_slopes(name):
    """Zero vectors, equal rows, one example, no example left by the mask, NaN in what is left out."""
    rng = np.random.default_rng(4)
    some = rng.normal(size=(4, 3)).astype(np.float32)
    zero, equal, nothing = np.zeros((4, 3), np.float32), np.ones((4, 3), np.float32), np.full((4, 3), np.nan)
    total = jax.jit(jax.value_and_grad(lambda *a: calls()[name](*a).sum(), argnums=(0, 1)))
    every = np.ones(4, bool)
    for eeg, text, where in (
        (zero, zero, every),
        (zero, some, every),
        (some, zero, every),
        (equal, equal, every),
        (some, some, ~every),
        (nothing, some if name == "vocabulary" else nothing, ~every),  # a vocabulary has no mask
        (some[:1], some[:1], every[:1]),
    ):
        for positive in (np.eye(len(eeg), dtype=bool), np.zeros((len(eeg), len(eeg)), bool)):
            value, slopes = total(*map(jnp.asarray, (eeg.astype(np.float32), text.astype(np.float32), positive, where)))
            assert np.isfinite(value) and all(np.isfinite(g).all() for g in slopes)
            if not where.any() or (name in KINDS[:3] and not positive.any()):  # "masked" reads no positives of i itself
                assert value == 0 and not any(np.asarray(g).any() for g in slopes)


def test_one_positive_a_row_makes_all_kinds_the_symmetric_loss():
    rng = np.random.default_rng(5)
    eeg, text = rng.normal(size=(2, 6, 4)).astype(np.float32)
    expected = losses.info_nce(eeg, text, 1.5)
    for kind in KINDS:
        np.testing.assert_allclose(losses.info_nce_multi(eeg, text, jnp.eye(6, dtype=bool), 1.5, kind), expected, 1e-5)
    temperature = float(np.exp(-1.5))
    np.testing.assert_allclose(losses.contrastive(eeg, text, temperature=temperature), expected, rtol=1e-5)


def test_class_weights_multiply_and_the_label_of_a_masked_word_is_not_read():
    rng = np.random.default_rng(6)
    eeg, vocabulary = rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    word, where, weight = np.array([0, 2, -1, 1, 7]), np.array([1, 1, 0, 1, 0], bool), np.array([0.5, 2.0, 3.0])
    plain = losses.info_nce_vocabulary(eeg, vocabulary, word, 1.0, where=where)
    weighted = losses.info_nce_vocabulary(eeg, vocabulary, word, 1.0, class_weight=weight, where=where)
    np.testing.assert_allclose(weighted, plain * np.array([0.5, 3.0, 0, 2.0, 0]), rtol=1e-6)
    assert np.isnan(losses.info_nce_vocabulary(eeg, vocabulary, word, 1.0)[np.array([2, 4])]).all()


def test_half_precision_is_computed_in_fp32():
    rng = np.random.default_rng(7)
    eeg, text = rng.normal(size=(2, 6, 4)).astype(jnp.bfloat16)
    low = losses.info_nce(eeg, text, jnp.asarray(2.0, jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, losses.info_nce(eeg.astype(np.float32), text.astype(np.float32), 2.0), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda e, p: losses.info_nce(e, e[:2], 0.0), ShapeError, "as many rows of each"),
        (lambda e, p: losses.info_nce(e, e[:, :2], 0.0), ShapeError, "the same width"),
        (lambda e, p: losses.info_nce(e, e, jnp.zeros(3)), ShapeError, "log_scale has shape (3,)"),
        (lambda e, p: losses.info_nce_multi(e, e, p, 0.0, "mean"), ConfigError, "kind"),
        (lambda e, p: losses.info_nce_multi(e, e, p[:2], 0.0), ShapeError, "bool array of shape (3, 3)"),
        (lambda e, p: losses.siglip(e, e, p.astype(jnp.float32), 0.0, 0.0), ShapeError, "positive is float32"),
        (
            lambda e, p: losses.info_nce_vocabulary(e, e, jnp.arange(3), 0.0, class_weight=jnp.ones(2)),
            ShapeError,
            "class_weight has shape (2,)",
        ),
        (lambda e, p: losses.info_nce(e, e, 0.0, where=jnp.ones(4, bool)), ShapeError, "where is bool"),
    ],
)
def test_errors_say_what_to_pass(call, error, words):
    with pytest.raises(error) as caught:
        call(jnp.ones((3, 4)), jnp.eye(3, dtype=bool))
    assert words in str(caught.value)
