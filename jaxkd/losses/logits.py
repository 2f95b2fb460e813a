"""Losses on logits: cross-entropy, soft and hard distillation, DKD, standardised logits, DIST, DeiT's token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.errors import ShapeError, UnknownNameError, check_choice, check_range
from jaxkd.losses.arguments import check_logits, exclude, full_precision, include
from jaxkd.losses.norms import safe_norm, safe_sqrt


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0, where: jax.Array | None = None
) -> jax.Array:
    """Cross-entropy with label smoothing.

    (1 - smoothing) * (-log p[label]) + smoothing * (mean over classes of -log p), which is the cross-entropy to the
    target (1 - smoothing) * onehot + smoothing / K (timm, loss/cross_entropy.py). Probabilities are smoothed by the
    same rule, so that one-hot rows and integers give the same loss. timm's soft-target loss never smooths, because its
    mixup already has: pass smoothing=0 with smoothed labels.

    Args:
      logits: (B, K), any float type; computed in at least fp32.
      labels: (B,) integers in [0, K), or (B, K) probabilities. An integer outside gives NaN.
      smoothing: fraction of the target that is spread evenly over the classes, in [0, 1).
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in nats.

    Raises:
      ConfigError: smoothing outside [0, 1).
      ShapeError: labels of another shape or kind.
    """
    check_range("smoothing", smoothing, 0, below=1, hint="published recipes use 0.1")
    shape = jnp.shape(labels)
    integer = jnp.issubdtype(jnp.result_type(labels), jnp.integer)
    if logits.ndim != 2 or shape != logits.shape[: 1 if integer else 2]:
        raise ShapeError(
            f"The logits have shape {logits.shape} and the labels are {jnp.result_type(labels)} of shape {shape}. "
            "Pass labels as (batch,) integers, or probabilities of the shape (batch, classes) of the logits."
        )
    (logits,) = include(where, full_precision(logits))
    log_p = jax.nn.log_softmax(logits)
    if integer:
        labels = jnp.asarray(labels, jnp.int32)
        labels = jnp.where(labels < 0, log_p.shape[1], labels)  # or -1 would be the last class
        nll = -jnp.take_along_axis(log_p, labels[:, None], axis=1, mode="fill", fill_value=jnp.nan)[:, 0]
    else:
        (labels,) = include(where, full_precision(labels))
        nll = -jnp.sum(labels * log_p, axis=1)
    if smoothing:
        # Nothing is renormalised here: probabilities that do not sum to 1 keep their sum.
        nll = (1.0 - smoothing) * nll - smoothing * jnp.mean(log_p, axis=1)
    return exclude(where, nll)


def kl(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 1.0, where: jax.Array | None = None
) -> jax.Array:
    """Soft knowledge distillation: T^2 KL(teacher || student), both softened by T, summed over classes.

    Its mean over the batch is PyTorch's `batchmean` times T^2, as in SpectralKD (DeiT also divides by the number of
    classes).

    Args:
      student_logits: (B, K), any float type; computed in at least fp32.
      teacher_logits: (B, K). The gradient is not stopped here; `distill.Teacher` does that.
      temperature: T, above 0.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in nats times T^2.

    Raises:
      ConfigError: a temperature that is not above 0.
      ShapeError: logits that differ in shape.
    """
    check_range("temperature", temperature, above=0, hint="published recipes use 1")
    check_logits(student_logits.shape, teacher_logits.shape)
    student, teacher = include(where, full_precision(student_logits), full_precision(teacher_logits))
    log_s, log_t = jax.nn.log_softmax(student / temperature), jax.nn.log_softmax(teacher / temperature)
    return exclude(where, temperature**2 * jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=1))


def hard(
    student_logits: jax.Array, teacher_logits: jax.Array, *, smoothing: float = 0.0, where: jax.Array | None = None
) -> jax.Array:
    """Hard knowledge distillation: cross-entropy to the teacher's top class.

    Args:
      student_logits: (B, K), any float type; computed in at least fp32.
      teacher_logits: (B, K); ties go to the first class.
      smoothing: of the teacher's label; the published objective does not smooth it.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in nats.

    Raises:
      ConfigError: smoothing outside [0, 1).
      ShapeError: logits that differ in shape.
    """
    check_logits(student_logits.shape, teacher_logits.shape)
    return cross_entropy(student_logits, jnp.argmax(teacher_logits, axis=1), smoothing=smoothing, where=where)


def decoupled_kl(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """Decoupled knowledge distillation, DKD: T^2 (alpha TCKD + beta NCKD), all logits divided by T.

    TCKD is KL(teacher || student) of the pair (p_y, 1 - p_y), the label against the rest; NCKD is KL(teacher ||
    student) of the softmax over the K - 1 other classes, exactly 0 for K = 2. Source: arXiv 2203.08679; mdistiller,
    distillers/DKD.py (same defaults, and it multiplies the loss by min(epoch / 20, 1)); mmrazor defaults to alpha =
    beta = T = 1.

    Both codes take the logarithm of a softmax, which is NaN for gaps above 100, and leave the label out by subtracting
    1000. Here log(1 - p_y) = logsumexp(others) - logsumexp(all), and the class is taken out of the sum.

    Args:
      student_logits: (B, K), any float type; computed in at least fp32.
      teacher_logits: (B, K); the gradient is not stopped here.
      labels: (B,) integers in [0, K). One outside gives NaN. Mixed labels have no target class.
      alpha: weight of TCKD.
      beta: weight of NCKD.
      temperature: T, above 0.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in nats times T^2.

    Raises:
      ConfigError: a temperature that is not above 0.
      ShapeError: logits that differ in shape, fewer than 2 classes, labels that are no (B,) integers.
    """
    check_range("temperature", temperature, above=0, hint="published recipes use 4")
    check_logits(student_logits.shape, teacher_logits.shape)
    size, classes = student_logits.shape
    if classes < 2:
        raise ShapeError(f"The logits have {classes} class, and decoupled_kl needs 2 or more. Use losses.kl.")
    if jnp.shape(labels) != (size,) or not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ShapeError(
            f"The labels are {jnp.result_type(labels)} of shape {jnp.shape(labels)}, but decoupled_kl needs ({size},) "
            "integers, as it splits off one class. Switch mixup and cutmix off, or use losses.kl."
        )
    student, teacher = full_precision(student_logits), full_precision(teacher_logits)
    student, teacher, labels = include(where, student, teacher, jnp.asarray(labels, jnp.int32))
    target = labels[:, None] == jnp.arange(classes)
    (s_yes, s_no, s_rest), (t_yes, t_no, t_rest) = (_split(x / temperature, target) for x in (student, teacher))
    tckd = jnp.exp(t_yes) * (t_yes - s_yes) + jnp.exp(t_no) * (t_no - s_no)
    nckd = jnp.sum(jnp.where(target, 0.0, jnp.exp(t_rest) * (t_rest - s_rest)), axis=1)
    loss = temperature**2 * (alpha * tckd + beta * nckd)
    return exclude(where, jnp.where(jnp.any(target, axis=1), loss, jnp.nan))


def _split(logits: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log p_y (B,), log(1 - p_y) (B,), and the log-softmax over the other classes (B, K), 0 at the target."""
    everything = jax.nn.logsumexp(logits, axis=1)
    others = jax.nn.logsumexp(jnp.where(target, -jnp.inf, logits), axis=1)
    yes = jnp.sum(jnp.where(target, logits, 0.0), axis=1) - everything
    return yes, others - everything, jnp.where(target, 0.0, logits - others[:, None])


def standardized_kl(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    temperature: float = 2.0,
    eps: float = 1e-7,
    ddof: int = 1,
    where: jax.Array | None = None,
) -> jax.Array:
    """Distillation of standardised logits: T^2 KL(softmax(z_t / T) || softmax(z_s / T)), z = (x - mean) / (std + eps).

    Mean and standard deviation are over the classes of one example. Source: arXiv 2403.01427; logit-standardization-KD,
    distillers/KD.py. The published recipe is 0.1 times cross-entropy plus 9 times this at T = 2. The code divides the
    variance by K - 1 (`ddof=1`), the paper by K (`ddof=0`).

    The slope at logits that are all equal, such as those of a zero-initialised head, is that of x / eps: finite, but
    1e7 times the usual one.

    Args:
      student_logits: (B, K), any float type; computed in at least fp32.
      teacher_logits: (B, K); the gradient is not stopped here.
      temperature: T, above 0.
      eps: added to the standard deviation, above 0.
      ddof: 1 for the published code, 0 for the paper.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in nats times T^2.

    Raises:
      ConfigError: a temperature or eps that is not above 0, another ddof.
      ShapeError: logits that differ in shape, or a single class.
    """
    check_range("temperature", temperature, above=0, hint="the published recipe uses 2")
    check_range("eps", eps, above=0, hint="the published code uses 1e-7")
    check_choice("ddof", ddof, (0, 1), hint="1 is the published code")
    check_logits(student_logits.shape, teacher_logits.shape)
    classes = student_logits.shape[1]
    if classes < 2:
        raise ShapeError(f"The logits have {classes} class, whose deviation is 0. standardized_kl needs 2 or more.")
    student, teacher = include(where, full_precision(student_logits), full_precision(teacher_logits))

    def standardize(x: jax.Array) -> jax.Array:
        x = x - jnp.mean(x, axis=1, keepdims=True)
        return x / (safe_sqrt(jnp.sum(jnp.square(x), axis=1, keepdims=True) / (classes - ddof)) + eps)

    return kl(standardize(student), standardize(teacher), temperature=temperature, where=where)


def dist(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    eps: float = 1e-8,
    scale: bool = True,
    where: jax.Array | None = None,
) -> jax.Array:
    """DIST, correlations of the probabilities y = softmax(z / T): T^2 (beta inter + gamma intra). Batch-level.

    inter = 1 - mean over examples of corr(y_s[b], y_t[b]) and intra = 1 - mean over classes of corr(y_s[:, k],
    y_t[:, k]), corr(a, b) = <a, b> / (|a| |b| + eps) of centred vectors. A constant vector has correlation 0 and slope
    0. Source: arXiv 2205.10536; image_classification_sota, lib/models/losses/dist_kd.py, and mmrazor. These multiply
    by T^2 (`scale=True`); the paper's appendix does not (`scale=False`).

    Args:
      student_logits: (B, K), any float type; computed in at least fp32. B is the global batch.
      teacher_logits: (B, K); the gradient is not stopped here.
      beta: weight of inter, the relations between the classes of one example.
      gamma: weight of intra, the relations between the examples of one class.
      temperature: T, above 0.
      eps: added to the product of the lengths.
      scale: whether to multiply by T^2.
      where: (B,) bool; the loss is that of the examples with True. Others may hold NaN.

    Returns:
      (), without unit.

    Raises:
      ConfigError: a temperature or eps that is not above 0.
      ShapeError: logits that differ in shape.
    """
    check_range("temperature", temperature, above=0, hint="published recipes use 1 to 4")
    check_range("eps", eps, above=0, hint="the published code uses 1e-8")
    check_logits(student_logits.shape, teacher_logits.shape)
    logits = include(where, full_precision(student_logits), full_precision(teacher_logits))
    student, teacher = (jax.nn.softmax(z / temperature) for z in logits)
    counted = jnp.ones(student.shape[0], student.dtype) if where is None else jnp.asarray(where, student.dtype)
    count = jnp.maximum(jnp.sum(counted), 1.0)

    def correlation(a: jax.Array, b: jax.Array, *, axis: int) -> jax.Array:
        return jnp.sum(a * b, axis=axis) / (safe_norm(a, axis) * safe_norm(b, axis) + eps)

    inter = correlation(*(y - jnp.mean(y, axis=1, keepdims=True) for y in (student, teacher)), axis=1)
    columns = ((y - jnp.sum(y * counted[:, None], axis=0) / count) * counted[:, None] for y in (student, teacher))
    loss = beta * (1.0 - jnp.sum(inter * counted) / count) + gamma * (1.0 - jnp.mean(correlation(*columns, axis=0)))
    return (temperature**2 if scale else 1.0) * loss


def distillation_token(
    class_logits: jax.Array,
    distill_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    *,
    kind: str = "hard",
    alpha: float = 0.5,
    temperature: float = 1.0,
    smoothing: float = 0.0,
    per_class: bool = False,
    where: jax.Array | None = None,
) -> jax.Array:
    """DeiT's objective with a distillation token: (1 - alpha) CE(class, labels) + alpha KD(distill, teacher).

    KD is the cross-entropy to the teacher's top class ("hard"), or T^2 KL(teacher || distill) ("soft"). Source: arXiv
    2012.12877; deit, losses.py. The code divides soft KD also by the number of classes (`per_class=True`), the paper
    does not. At test time the paper adds the softmaxes of both heads, while the code and jaxkd average the logits.

    Args:
      class_logits: (B, K) of the class token, any float type; computed in at least fp32.
      distill_logits: (B, K) of the distillation token.
      teacher_logits: (B, K); the gradient is not stopped here.
      labels: (B,) integers in [0, K), or (B, K) probabilities.
      kind: "hard" or "soft".
      alpha: weight of KD, in [0, 1].
      temperature: T of soft KD, above 0; hard KD has none.
      smoothing: of `labels` only, in [0, 1).
      per_class: whether soft KD is divided by K.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in nats (soft KD times T^2).

    Raises:
      ConfigError: alpha outside [0, 1], smoothing outside [0, 1), a temperature that is not above 0.
      UnknownNameError: another kind.
      ShapeError: logits that differ in shape, labels of another shape or kind.
    """
    check_choice("kind", kind, ("hard", "soft"), error=UnknownNameError)
    check_range("alpha", alpha, 0, 1, hint="published recipes use 0.5 for hard and 0.1 for soft")
    check_logits(class_logits.shape, teacher_logits.shape)
    base = cross_entropy(class_logits, labels, smoothing=smoothing, where=where)
    if kind == "hard":
        kd = hard(distill_logits, teacher_logits, where=where)
    else:
        kd = kl(distill_logits, teacher_logits, temperature=temperature, where=where)
        kd = kd / class_logits.shape[1] if per_class else kd
    return (1.0 - alpha) * base + alpha * kd
