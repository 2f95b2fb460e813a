"""The published objectives by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxkd.config import presets
from jaxkd.distill.objective import Objective
from jaxkd.distill.pair_features import as_pairs
from jaxkd.distill.pairing import Pair
from jaxkd.distill.schedules import weight_schedule
from jaxkd.distill.terms import build_objective
from jaxkd.errors import ConfigError

PRESETS = presets.PRESETS


def preset(name: str, *, pairs: Sequence[Pair] = (), smoothing: float = 0.1, **settings: Any) -> Objective:
    """A published objective; `config.presets.expand` has the formulas.

    A student whose output is the pair (class, distillation) learns the labels with the first head and the teacher's
    logits with the second, as in DeiT. Where a preset has no logit term, CE reads the mean of both, which is the
    network's output in evaluation.

    Args:
      name: one of `PRESETS`.
      pairs: (student tap, teacher tap) of the feature term, from `resolve_pairs`.
      smoothing: of the labels in CE, in [0, 1).
      **settings: alpha, temperature, feature_weight, spectral_method and ce_weight of `config.presets.expand`.

    Returns:
      The sum of the preset's terms.

    Raises:
      ConfigError: a feature term without pairs, a setting that the preset never reads, or a value out of range.
      UnknownNameError: another preset, schedule or method.
    """
    entries = presets.expand(name, **settings)
    feature = presets.parts(name)[1]
    if pairs and not feature:
        raise ConfigError(
            f'pairs={pairs!r} is set, but the objective "{name}" has no use for it: it lacks a feature term. Leave '
            "pairs out, or choose a preset with a feature term."
        )
    if feature and not as_pairs(pairs):
        raise ConfigError(
            f'The objective "{name}" compares features, but no layers are paired. Give pairs, e.g. "last" or '
            "((0, 0), (11, 23)), or choose a preset without features."
        )
    for setting, most in (("alpha", 1.0), ("feature_weight", float("inf")), ("ce_weight", float("inf"))):
        if settings.get(setting) is not None:
            weight_schedule(settings[setting], name=setting, most=most)  # errors by the setting's own name
    return build_objective(entries, pairs=pairs, smoothing=smoothing)
