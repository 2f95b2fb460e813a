"""Published objectives by name, as recipes that expand to terms; imports no JAX."""

from __future__ import annotations

from typing import Any

from jaxkd.errors import ConfigError, UnknownNameError, did_you_mean

Entry = dict[str, Any]

# preset -> (logit term, feature term)
_PRESETS: dict[str, tuple[str, str]] = {
    "none": ("", ""),
    "soft": ("kl", ""),
    "hard": ("hard", ""),
    "spectral": ("", "spectral"),
    "mse": ("", "mse"),
    "soft+spectral": ("kl", "spectral"),
    "soft+mse": ("kl", "mse"),
    "hard+spectral": ("hard", "spectral"),
    "hard+mse": ("hard", "mse"),
}
PRESETS = tuple(_PRESETS)
# The terms of this package: what each reads of the config besides its own arguments.
_OF_PAIRS = """
    spectral mse feature_cosine normalized_mse attention_transfer nst hint vid mgd vitkd_mimic vitkd_generation simkd
    attention_kl attention_cosine relation_kl manifold_intra manifold_inter manifold_random
    rkd_distance rkd_angle similarity_preserving pkt correlation_congruence linear_cka contrastive
"""
READ_BY_TERM: dict[str, tuple[str, ...]] = {
    "ce": ("smoothing",),
    "distillation_token": ("smoothing",),
    **dict.fromkeys(("kl", "hard", "decoupled_kl", "standardized_kl", "dist"), ()),
    **dict.fromkeys(_OF_PAIRS.split(), ("pairs",)),
}


def parts(name: str) -> tuple[str, str]:
    """(logit term or "", feature term or "") of a preset."""
    if name not in _PRESETS:
        raise UnknownNameError(
            f'"{name}" is not an objective.{did_you_mean(name, PRESETS)} Choose one of {", ".join(PRESETS)}, or list '
            "the terms of your own in distill.terms."
        )
    return _PRESETS[name]


def expand(
    name: str,
    *,
    alpha: Any = None,
    temperature: float | None = None,
    feature_weight: Any = None,
    spectral_method: str | None = None,
    ce_weight: Any = None,
) -> tuple[Entry, ...]:
    """The terms of a published objective (SpectralKD, arXiv 2412.19055; encoding mismatch, arXiv 2511.15572).

        none                     CE
        soft, hard               (1 - alpha) CE + alpha KD
        spectral, mse            CE + feature_weight Feat
        soft+spectral, ...       (1 - alpha) CE + alpha KD + feature_weight Feat

    CE is label-smoothed cross-entropy (term "ce"), KD is T^2 KL to the teacher ("kl") or unsmoothed CE to its first
    class ("hard"), Feat the mean over pairs of the SpectralKD loss ("spectral") or the MSE ("mse"). The defaults of
    `soft+spectral` are the published 0.1 CE + 0.9 KL + 0.2 Feat. The authors' mode `fft` is `spectral` with
    ce_weight=1 - alpha.

    Args:
      name: one of the above.
      alpha: share of the logit term in [0, 1]; a number or a schedule, which 1 - alpha then follows. None is 0.9.
      temperature: of `soft`, above 0. None is 1.
      feature_weight: number or schedule. None is 0.2.
      spectral_method: "closed" or "fft". None or "" is the faster.
      ce_weight: number or schedule in place of the weight of CE above.

    Returns:
      Entries as in `config.distill.terms`.
    """
    logit, feature = parts(name)
    _refuse_unread(name, "a feature term", bool(feature), feature_weight=feature_weight)
    _refuse_unread(name, "the spectral term", feature == "spectral", spectral_method=spectral_method or None)
    _refuse_unread(name, "a logit term", bool(logit), alpha=alpha)
    _refuse_unread(name, "soft KD", logit == "kl", temperature=temperature)
    share = 0.9 if alpha is None else alpha
    if ce_weight is None:
        ce_weight = {"schedule": "one_minus", "of": share} if logit else 1.0
    entries: list[Entry] = [{"loss": "ce", "weight": ce_weight}]
    if logit:
        entries.append({"loss": logit, "weight": share})
    if logit == "kl" and temperature is not None:
        entries[-1]["temperature"] = temperature
    if feature:
        entries.append({"loss": feature, "weight": 0.2 if feature_weight is None else feature_weight})
    if spectral_method:
        entries[-1]["method"] = spectral_method
    return tuple(entries)


def _refuse_unread(preset_name: str, what: str, read: bool, **settings: Any) -> None:
    for name, value in settings.items():
        if value is not None and not read:
            raise ConfigError(
                f'{name}={value!r} is set, but the objective "{preset_name}" has no use for it: it lacks {what}. Leave '
                f"{name} out, or choose a preset with {what}."
            )
