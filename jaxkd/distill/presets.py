"""The objectives of the papers by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from jaxkd import losses
from jaxkd.distill.objective import Answer, Batch, Objective, Term
from jaxkd.distill.pairing import Pair
from jaxkd.distill.schedules import weight_schedule
from jaxkd.errors import ConfigError, TapError, UnknownNameError, did_you_mean
from jaxkd.losses.spectral import DEFAULT_METHOD, check_method

# preset -> (logit term, feature term)
_PRESETS: dict[str, tuple[str, str]] = {
    "none": ("", ""),
    "soft": ("soft", ""),
    "hard": ("hard", ""),
    "spectral": ("", "spectral"),
    "mse": ("", "mse"),
    "soft+spectral": ("soft", "spectral"),
    "soft+mse": ("soft", "mse"),
    "hard+spectral": ("hard", "spectral"),
    "hard+mse": ("hard", "mse"),
}
PRESETS = tuple(_PRESETS)


def preset(
    name: str,
    *,
    pairs: Sequence[Pair] = (),
    alpha: Any = None,
    temperature: float | None = None,
    feature_weight: Any = None,
    smoothing: float = 0.1,
    spectral_method: str | None = None,
    ce_weight: Any = None,
) -> Objective:
    """A published objective (SpectralKD, arXiv 2412.19055; encoding mismatch, arXiv 2511.15572).

        none                     CE
        soft, hard               (1 - alpha) CE + alpha KD
        spectral, mse            CE + feature_weight Feat
        soft+spectral, ...       (1 - alpha) CE + alpha KD + feature_weight Feat

    CE is label-smoothed cross-entropy (term "ce"), KD is T^2 KL to the teacher ("kl") or unsmoothed CE to its first
    class ("hard"), Feat the mean over pairs of the SpectralKD loss ("spectral") or the MSE ("mse"). The defaults of
    `soft+spectral` are the published 0.1 CE + 0.9 KL + 0.2 Feat. The authors' mode `fft` is `spectral` with
    ce_weight=1 - alpha.

    A student whose output is the pair (class, distillation) learns the labels with the first head and the teacher's
    logits with the second, as in DeiT. Where a preset has no logit term, CE reads the mean of both, which is what it
    answers in evaluation.

    Args:
      name: one of the above.
      pairs: (student tap, teacher tap) of the feature term, from `resolve_pairs`.
      alpha: share of the logit term in [0, 1]; a number or a schedule, which 1 - alpha then follows. None is 0.9.
      temperature: of `soft`, above 0. None is 1.
      feature_weight: number or schedule (`weight_schedule`). None is 0.2.
      smoothing: of the labels in CE, in [0, 1).
      spectral_method: "closed" or "fft". None or "" is the faster.
      ce_weight: number or schedule in place of the weight of CE above.

    Raises:
      ConfigError: a feature term without pairs, a setting that the preset never reads, or a value out of range.
      UnknownNameError: another preset, schedule or method.
    """
    if name not in _PRESETS:
        raise UnknownNameError(
            f'"{name}" is not an objective.{did_you_mean(name, PRESETS)} A preset names the terms that are summed. '
            f"Choose one of {', '.join(PRESETS)}, or build a distill.Objective from your own terms."
        )
    logit, feature = _PRESETS[name]
    pairs = tuple(pairs)
    _refuse_unread(name, "a feature term", bool(feature), pairs=pairs or None, feature_weight=feature_weight)
    _refuse_unread(name, "the spectral term", feature == "spectral", spectral_method=spectral_method or None)
    _refuse_unread(name, "a logit term", bool(logit), alpha=alpha)
    _refuse_unread(name, "soft KD", logit == "soft", temperature=temperature)
    if not all(isinstance(p, tuple | list) and len(p) == 2 and all(isinstance(tap, str) for tap in p) for p in pairs):
        raise ConfigError(
            f"pairs={pairs!r} are not pairs of taps. An objective reads features by name and does not know the "
            "networks. Pass what distill.resolve_pairs(pairs, student_taps, teacher_taps) returns."
        )
    if feature and not pairs:
        raise ConfigError(
            f'The objective "{name}" compares features, but no layers are paired. Its feature term would be the mean '
            'of nothing. Give pairs, e.g. "last" or ((0, 0), (11, 23)), or choose a preset without features.'
        )
    _check_settings(smoothing, 1.0 if temperature is None else temperature)

    share = weight_schedule(0.9 if alpha is None else alpha, name="alpha", most=1.0)
    if ce_weight is not None:
        weight = weight_schedule(ce_weight, name="ce_weight")
    else:
        weight = (lambda step: 1.0 - share(step)) if logit else 1.0
    terms = [
        Term("ce", weight, partial(_cross_entropy, smoothing=smoothing, class_head=bool(logit)), needs_teacher=False)
    ]
    if logit == "soft":
        terms.append(Term("kl", share, partial(_kl, temperature=1.0 if temperature is None else float(temperature))))
    if logit == "hard":
        terms.append(Term("hard", share, _hard))
    if feature:
        loss = losses.feature_mse
        if feature == "spectral":
            method = spectral_method or DEFAULT_METHOD
            check_method(method)
            loss = partial(losses.spectral, method=method)
        value = weight_schedule(0.2 if feature_weight is None else feature_weight, name="feature_weight")
        terms.append(Term(feature, value, partial(feature_mean, loss=loss, pairs=pairs)))
    return Objective(tuple(terms), tuple(s for s, _ in pairs), tuple(t for _, t in pairs))


def _refuse_unread(preset_name: str, what: str, read: bool, **settings: Any) -> None:
    for name, value in settings.items():
        if value is not None and not read:
            raise ConfigError(
                f'{name}={value!r} is set, but the objective "{preset_name}" has no use for it: it lacks {what}. A '
                f"setting without effect misleads whoever reads the results. Leave {name} out, or choose a preset with "
                f"{what}."
            )


def _check_settings(smoothing: Any, temperature: Any) -> None:
    for name, value, fine, words in (
        ("smoothing", smoothing, lambda v: 0 <= v < 1, "from 0 to below 1"),
        ("temperature", temperature, lambda v: 0 < v < float("inf"), "above 0"),
    ):
        if not isinstance(value, int | float) or isinstance(value, bool) or not fine(value):
            raise ConfigError(
                f"{name}={value!r} is out of range. The logits cannot be compared with it. Give a number {words}."
            )


def _head(output: Any, index: int | None) -> jax.Array:
    """One head of a network with two, by index, or their mean; the output itself of a network with one."""
    if not isinstance(output, tuple | list):
        return output
    return sum(output[1:], start=output[0]) / len(output) if index is None else output[index]


def _cross_entropy(
    student: Answer, teacher: Answer | None, batch: Batch, *, smoothing: float, class_head: bool
) -> jax.Array:
    logits = _head(student[0], 0 if class_head else None)
    return losses.cross_entropy(logits, batch["label"], smoothing=smoothing, where=batch.get("mask"))


def _kl(student: Answer, teacher: Answer, batch: Batch, *, temperature: float) -> jax.Array:
    ours, theirs = _head(student[0], 1), _head(teacher[0], None)
    return losses.kl(ours, theirs, temperature=temperature, where=batch.get("mask"))


def _hard(student: Answer, teacher: Answer, batch: Batch) -> jax.Array:
    return losses.hard(_head(student[0], 1), _head(teacher[0], None), where=batch.get("mask"))


def feature_mean(
    student: Answer, teacher: Answer, batch: Batch, *, loss: Callable[..., jax.Array], pairs: tuple[Pair, ...]
) -> jax.Array:
    """(B,) mean over `pairs` of a loss on features.

    Raises:
      TapError: a feature is missing from what the network handed back.
    """
    for side, answer, taps in (
        ("student", student, [p[0] for p in pairs]),
        ("teacher", teacher, [p[1] for p in pairs]),
    ):
        for tap in taps:
            if tap not in answer[1]:
                raise TapError(
                    f'The objective reads "{tap}" of the {side}, which handed back '
                    f"{sorted(answer[1]) or 'no features'}. A network only keeps what it is asked for. Call "
                    f"apply with taps=objective.{side}_taps."
                )
    values = [loss(student[1][s], teacher[1][t], where=batch.get("mask")) for s, t in pairs]
    return sum(values[1:], start=values[0]) / len(values)
