"""Contrastive losses: between a student and a teacher, and between EEG and text with a learned temperature.

All compare unit vectors by their cosine. The arrays are those of the global batch: under jit with a sharded batch the
value is that of one device. Legend: B examples, N words, M candidates, K words of a vocabulary, D channels.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxkd.errors import ShapeError, check_choice, check_range
from jaxkd.losses.arguments import exclude, full_precision, include
from jaxkd.losses.logits import cross_entropy
from jaxkd.losses.norms import unit

INITIAL_LOG_SCALE = math.log(1 / 0.07)  # of a learned temperature, as in CLIP
MAX_LOG_SCALE = math.log(100.0)
MULTI_KINDS = ("mean_log", "log_mean", "log_sum", "masked")
_NOTHING = -1e30  # logit of what is left out; finite, because a row without any candidate would be NaN with -inf


def contrastive(
    student: jax.Array,
    teacher: jax.Array,
    *,
    temperature: float = 0.07,
    eps: float = 1e-12,
    where: jax.Array | None = None,
) -> jax.Array:
    """In-batch contrastive distillation: the other examples of the batch are the negatives. Batch-level.

    Half the cross-entropy of row i plus half that of column i of the logits unit(s) unit(t)' / T, with class i. Both
    features are linear projections to one width (`losses.project`). Source: arXiv 2103.00020, the symmetric loss;
    open_clip, `ClipLoss`; idea of contrasting student and teacher: arXiv 1910.10699. It is not that paper's CRD, which
    has a memory bank and another normaliser. Public code compares the examples of one device unless it gathers them;
    here B is the global batch. Duplicates in a batch are false negatives. Memory: B^2 values.

    Args:
      student: (B, D), any float type; computed in at least fp32.
      teacher: (B, D); the gradient is not stopped here, as its projection is trained.
      temperature: T, above 0.
      eps: lower bound of a vector's length; shorter ones have no slope.
      where: (B,) bool; examples with False give exactly 0, are no negatives and may hold NaN.

    Returns:
      (B,) in nats; 0 for one example.

    Raises:
      ConfigError: a temperature or eps that is not above 0.
      ShapeError: not two (B, D) of the same shape.
    """
    check_range("temperature", temperature, above=0, hint="CLIP starts from 0.07")
    check_range("eps", eps, above=0, hint="the golden values use 1e-12")
    shapes = tuple(student.shape), tuple(teacher.shape)
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise ShapeError(
            f"The student's feature has shape {shapes[0]} and the teacher's {shapes[1]}, but both must be the same "
            "(batch, channels). Pool maps, and project both features to one width."
        )
    student, teacher = include(where, full_precision(student), full_precision(teacher))
    return exclude(where, _diagonal_loss(_cosines(student, teacher, eps) / temperature, where))


def info_nce(
    eeg: jax.Array, text: jax.Array, log_scale: jax.Array | float, *, where: jax.Array | None = None
) -> jax.Array:
    """Symmetric InfoNCE with a learned temperature: row i of `eeg` belongs to row i of `text` alone. Batch-level.

    Half the cross-entropy of row i plus half that of column i of the logits exp(log_scale) cos(eeg_i, text_j), with
    class i (arXiv 2103.00020). An equal text in another row is a false negative: see `info_nce_multi`.

    Args:
      eeg: (B, D), any float type and length; computed in at least fp32.
      text: (B, D).
      log_scale: (), logarithm of 1 / temperature; clip it after the optimiser's step with `clip_log_scale`.
      where: (B,) bool; examples with False give exactly 0, are no negatives and may hold NaN.

    Returns:
      (B,) in nats, whose mean over the examples that count is the loss.

    Raises:
      ShapeError: not two (B, D) of the same shape, or a log_scale that is no scalar.
    """
    scale = _scale(log_scale)
    _check_pairs(eeg, text, same_rows=True)
    eeg, text = include(where, full_precision(eeg), full_precision(text))
    return exclude(where, _diagonal_loss(scale * _cosines(eeg, text), where))


def info_nce_vocabulary(
    eeg: jax.Array,
    vocabulary: jax.Array,
    word: jax.Array,
    log_scale: jax.Array | float,
    *,
    class_weight: jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of each EEG word against a whole fixed vocabulary: logits exp(log_scale) cos(eeg_i, vocabulary_k).

    Args:
      eeg: (N, D), any float type and length; computed in at least fp32.
      vocabulary: (K, D), a vector per word; a class for all other words is one more row.
      word: (N,) integers in [0, K); one outside gives NaN unless `where` leaves it out.
      log_scale: (), logarithm of 1 / temperature; clip it after the optimiser's step with `clip_log_scale`.
      class_weight: (K,) factor of the words with that class; None for 1. The weighted mean is the sum of this loss
        over the sum of class_weight[word].
      where: (N,) bool; words with False give exactly 0 and may hold NaN.

    Returns:
      (N,) in nats, times the class weight.

    Raises:
      ShapeError: arrays that do not fit.
    """
    scale = _scale(log_scale)
    _check_pairs(eeg, vocabulary, names=("eeg", "vocabulary"))
    (eeg,) = include(where, full_precision(eeg))
    loss = cross_entropy(scale * _cosines(eeg, full_precision(vocabulary)), word, where=where)
    if class_weight is None:
        return loss
    if jnp.shape(class_weight) != vocabulary.shape[:1]:
        raise ShapeError(
            f"class_weight has shape {jnp.shape(class_weight)}, but the vocabulary has {vocabulary.shape[0]} rows. "
            "Pass one weight for each of them."
        )
    # Indexing clamps a word outside, whose loss is 0 or NaN anyway.
    return loss * full_precision(class_weight)[word]


def info_nce_multi(
    eeg: jax.Array,
    text: jax.Array,
    positive: jax.Array,
    log_scale: jax.Array | float,
    kind: str = "mean_log",
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """InfoNCE in both directions with several right answers, such as the readings of one sentence. Batch-level.

    With p_ij the softmax over row i of exp(log_scale) cos(eeg_i, text_j) and P_i the positives of row i, the term of
    row i is, and that of column i likewise:

    - "mean_log": minus the mean over P_i of log p_ij (SupCon's L_out, arXiv 2004.11362);
    - "log_mean": minus the log of the mean over P_i of p_ij (its L_in);
    - "log_sum": minus the log of the sum over P_i of p_ij (MIL-NCE, arXiv 1912.06430);
    - "masked": i alone is the right answer, and the other positives leave the denominator.

    Args:
      eeg: (B, D), any float type and length; computed in at least fp32.
      text: (B, D).
      positive: (B, B) bool, [i, j] where row i of `eeg` and row j of `text` have the same meaning.
      log_scale: (), logarithm of 1 / temperature; clip it after the optimiser's step with `clip_log_scale`.
      kind: one of the above.
      where: (B,) bool; examples with False give exactly 0, are neither positives nor negatives and may hold NaN.

    Returns:
      (B,) half the term of row i plus half that of column i, in nats. A row or column without any positive has no
      term; with [i, i] set there is none.

    Raises:
      ConfigError: another kind.
      ShapeError: arrays that do not fit.
    """
    check_choice("kind", kind, MULTI_KINDS)
    scale = _scale(log_scale)
    _check_pairs(eeg, text, same_rows=True)
    _check_positive(positive, (eeg.shape[0], eeg.shape[0]))
    eeg, text = include(where, full_precision(eeg), full_precision(text))
    logits, candidate = scale * _cosines(eeg, text), jnp.ones_like(positive)
    if where is not None:
        candidate = where[:, None] & where[None, :]
    rows = _multi_rows(logits, positive & candidate, candidate, kind)
    columns = _multi_rows(logits.T, (positive & candidate).T, candidate.T, kind)
    return exclude(where, (rows + columns) / 2.0)


def siglip(
    eeg: jax.Array,
    text: jax.Array,
    positive: jax.Array,
    log_scale: jax.Array | float,
    bias: jax.Array | float,
    *,
    where: jax.Array | None = None,
    text_where: jax.Array | None = None,
) -> jax.Array:
    """Sigmoid loss over all pairs of examples and candidates (arXiv 2303.15343). Batch-level.

    Row i is the sum over j of -log sigmoid(+-(exp(log_scale) cos(eeg_i, text_j) + bias)), plus for positives and minus
    for all others. With each text once among the candidates, equal texts are no false negatives (arXiv 2412.17829).

    Args:
      eeg: (B, D), any float type and length; computed in at least fp32.
      text: (M, D), the candidates.
      positive: (B, M) bool.
      log_scale: (), logarithm of 1 / temperature; the paper starts from ln 10.
      bias: (); the paper starts from -10.
      where: (B,) bool; examples with False give exactly 0 and may hold NaN.
      text_where: (M,) bool; candidates with False, such as those that fill up a fixed number, are left out likewise.

    Returns:
      (B,) in nats; the sum over the candidates, as in the paper, so that it grows with M.

    Raises:
      ShapeError: arrays that do not fit.
    """
    scale = _scale(log_scale)
    _check_pairs(eeg, text)
    _check_positive(positive, (eeg.shape[0], text.shape[0]))
    (eeg,) = include(where, full_precision(eeg))
    (text,) = include(text_where, full_precision(text))
    logits = scale * _cosines(eeg, text) + full_precision(bias)
    pairs = -jax.nn.log_sigmoid(jnp.where(positive, logits, -logits))
    if text_where is not None:
        pairs = jnp.where(text_where[None, :], pairs, 0.0)
    return exclude(where, jnp.sum(pairs, axis=1))


def clip_log_scale(log_scale: jax.Array) -> jax.Array:
    """The learned log-scale in [0, ln 100], as CLIP keeps it; to be called after the optimiser's step.

    Inside of the loss the slope beyond the limits would be 0, and the parameter would stay there.

    Args:
      log_scale: (), or any shape.

    Returns:
      Of the same shape and type.
    """
    return jnp.clip(log_scale, 0.0, MAX_LOG_SCALE)


def _cosines(a: jax.Array, b: jax.Array, eps: float = 1e-12) -> jax.Array:
    """(B, D), (M, D) -> (B, M) cosines; 0 and without slope at vectors of length 0."""
    return jnp.einsum("ic,jc->ij", unit(a, eps=eps), unit(b, eps=eps), precision=jax.lax.Precision.HIGHEST)


def _diagonal_loss(logits: jax.Array, where: jax.Array | None) -> jax.Array:
    """(B, B) logits -> (B,) mean of the cross-entropies of row i and of column i, both with class i."""
    match = jnp.diagonal(logits)
    if where is not None:
        logits = jnp.where(where[:, None] & where[None, :], logits, _NOTHING)
    both = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
    return both / 2.0 - match


def _multi_rows(logits: jax.Array, positive: jax.Array, candidate: jax.Array, kind: str) -> jax.Array:
    """(B,) terms of the rows of (B, B) logits; see `info_nce_multi`."""
    if kind == "masked":
        own = jnp.eye(logits.shape[0], dtype=bool)
        positive, candidate = own & candidate, (~positive | own) & candidate
    count = jnp.sum(positive, axis=1)
    total = jax.nn.logsumexp(jnp.where(candidate, logits, _NOTHING), axis=1)
    if kind in ("mean_log", "masked"):
        loss = total - jnp.sum(jnp.where(positive, logits, 0.0), axis=1) / jnp.maximum(count, 1)
    else:
        loss = total - jax.nn.logsumexp(jnp.where(positive, logits, _NOTHING), axis=1)
    if kind == "log_mean":
        loss = loss + jnp.log(jnp.maximum(count, 1).astype(loss.dtype))
    return jnp.where(count > 0, loss, jnp.zeros_like(loss))


def _scale(log_scale: jax.Array | float) -> jax.Array:
    """exp(log_scale), in at least fp32."""
    if jnp.ndim(log_scale) != 0:
        raise ShapeError(f"log_scale has shape {jnp.shape(log_scale)}. Pass one number, a scalar array.")
    return jnp.exp(full_precision(log_scale))


def _check_pairs(
    a: jax.Array, b: jax.Array, *, names: tuple[str, str] = ("eeg", "text"), same_rows: bool = False
) -> None:
    """Checks two (rows, D) arrays of one width, and of one number of rows where row i belongs to row i."""
    first, second = tuple(a.shape), tuple(b.shape)
    what = f"{names[0]} has shape {first} and {names[1]} {second}"
    if len(first) != 2 or len(second) != 2 or first[1] != second[1]:
        raise ShapeError(f"{what}, but both must be (rows, channels) of one width. Project both to the same width.")
    if same_rows and first != second:
        raise ShapeError(f"{what}, but row i of one belongs to row i of the other. Pass as many rows of each.")


def _check_positive(positive: jax.Array, wanted: tuple[int, int]) -> None:
    if jnp.shape(positive) != wanted or jnp.result_type(positive) != jnp.bool_:
        raise ShapeError(
            f"positive is {jnp.result_type(positive)} of shape {jnp.shape(positive)}. Pass a bool array of shape "
            f"{wanted}, with True at the right answers of each row."
        )
