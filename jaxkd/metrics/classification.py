"""Classification metrics: top-k accuracy and cross-entropy."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.errors import ShapeError, check_range
from jaxkd.metrics.aggregate import Metrics, average


def _check(logits: jax.Array, labels: jax.Array) -> None:
    integer = jnp.issubdtype(jnp.result_type(labels), jnp.integer)
    if logits.ndim != 2 or jnp.shape(labels) != logits.shape[:1] or not integer:
        raise ShapeError(
            f"The logits have shape {logits.shape} and the labels are {jnp.result_type(labels)} of shape "
            f"{jnp.shape(labels)}. Pass logits of shape (batch, classes) and integer labels of shape (batch,)."
        )


def _pick(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """(B, K) -> (B,) the score of each label, NaN for a label outside [0, K)."""
    labels = jnp.asarray(labels, jnp.int32)
    labels = jnp.where(labels < 0, scores.shape[1], labels)
    return jnp.take_along_axis(scores, labels[:, None], axis=1, mode="fill", fill_value=jnp.nan)[:, 0]


def top_k_correct(logits: jax.Array, labels: jax.Array, k: int = 1, where: jax.Array | None = None) -> jax.Array:
    """Whether each label is among the k highest logits of its example.

    Classes with equal logits are ranked by index, as by argmax and a stable sort. NaN ranks before any number,
    and a label whose own logit is NaN is wrong.

    Args:
      logits: (B, K).
      labels: (B,) integers; one outside [0, K) is never correct.
      k: at least 1; more than K counts as K.
      where: (B,) bool, False gives 0; None for all.

    Returns:
      (B,) fp32, 1 or 0.

    Raises:
      ConfigError: k below 1.
      ShapeError: labels of another shape or kind.
    """
    check_range("k", k, 1, whole=True)
    _check(logits, labels)
    own = _pick(logits, labels)[:, None]
    behind = (logits < own) | ((logits == own) & (jnp.arange(logits.shape[1]) >= labels[:, None]))
    # Counting the classes that do not rank behind puts NaN, for which every comparison is false, in front.
    correct = (jnp.sum(~behind, axis=1) < min(k, logits.shape[1])) & ~jnp.isnan(own[:, 0])
    if where is not None:
        correct = correct & jnp.asarray(where, jnp.bool_)
    return correct.astype(jnp.float32)


def classification_metrics(logits: jax.Array, labels: jax.Array, where: jax.Array | None = None) -> Metrics:
    """Top-1, top-5 and cross-entropy without smoothing, of one batch.

    Args:
      logits: (B, K), any float type; the loss is computed in at least fp32.
      labels: (B,) integers.
      where: (B,) bool, False for padding; None for all.

    Returns:
      {"top1", "top5", "loss"} -> average. The totals of top1 and top5 are numbers of images, so that the mean is in
      [0, 1]; with fewer than 5 classes top5 considers all of them. The loss is in nats.

    Raises:
      ShapeError: labels of another shape or kind.
    """
    _check(logits, labels)
    log_p = jax.nn.log_softmax(jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32)))
    return {
        "top1": average(top_k_correct(logits, labels, 1), where),
        "top5": average(top_k_correct(logits, labels, 5), where),
        "loss": average(-_pick(log_p, labels), where),
    }
