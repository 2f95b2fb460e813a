"""SpectralKD's rule for choosing the layers to align, from the teacher's intensity profile.

SpectralKD (arXiv 2412.19055, section on the model-wise analysis) finds that CaiT concentrates information in its first
and its last blocks and aligns only those: 0, 1 and 18 ... 23 of 24 blocks with 0, 1 and 6 ... 11 of 12. No threshold
for that choice is published. The rule here is:

1. The share of a block is (I - min) / (max - min), its intensity on the profile's own range from 0 to 1. A block is
   *high* if its share is above `threshold`, which is one half.
2. The high blocks that touch the first block are the first run, those that touch the last block are the last run.
3. The profile supports the rule if both runs exist and no block between them is high. It does not if it is flat (a
   range of at most `FLAT` of the largest value), shorter than three blocks, or not finite.
4. Teacher blocks of the first run go with the student's blocks of the same number, those of the last run with the
   student's last blocks, counted from the end.
5. If the student has fewer blocks than both runs together, blocks are dropped one by one from the inner end of the
   longer run (of the first run where they are equally long), until they fit.

A factor on all intensities changes nothing. The rule says where a profile is high, not that aligning there helps: that
is the paper's finding for CaiT, and profiles of random or barely trained networks are flat or odd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxkd.errors import ShapeError, check_range

THRESHOLD = 0.5  # share of the profile's range above which a block is high
BARELY_TRAINED = "Teachers without weights, barely trained or on small data often have such a profile."
FLAT = 0.1  # a profile whose range is at most this share of its largest value has no high blocks


@dataclass(frozen=True)
class Suggestion:
    """Result of the rule for one profile."""

    # ((student layer, teacher layer), ...), numbers counted from 0, in depth order; empty if not supported
    pairs: tuple[tuple[int, int], ...]
    # how many teacher blocks, from the first on, are high without a gap; 0 if none, or if nothing was measured
    first: int
    last: int  # likewise up to the last one
    threshold: float | None  # share of the range above which a block is high; None where no profile was read (stages)
    supported: bool  # whether the rule gives pairs
    reason: str  # why, in one or more whole sentences with the numbers


def suggest_pairs(profile: Any, student_depth: int, *, threshold: float = THRESHOLD) -> Suggestion:
    """Pairs of layers by SpectralKD's rule (see the module), for two networks of blocks.

    Args:
      profile: (L,) intensity of each block of the teacher, in depth order: the mean over images of
        `spectrum.image_channel_spectrum`, averaged over frequencies. Any positive factor gives the same answer.
      student_depth: number of the student's blocks.
      threshold: share of the profile's range, between 0 and 1.

    Returns:
      A Suggestion. A profile that does not support the rule is an answer, not an error: `supported` is False, there are
      no pairs, and `reason` says why.

    Raises:
      ShapeError: `profile` is not one-dimensional. ConfigError: `threshold` or `student_depth` out of range.

    Examples:
      ```python
      suggest_pairs([9, 8, *[1] * 16, *[9] * 6], 12).pairs  # (0, 0), (1, 1), (6, 18), (7, 19), ... (11, 23)
      ```
    """
    values = np.asarray(profile, np.float64)
    if values.ndim != 1:
        raise ShapeError(
            f"The profile has shape {values.shape}. Give (L,): one intensity per block, averaged over images and "
            "frequencies."
        )
    check_range("threshold", threshold, above=0, below=1, hint=f"the default is {THRESHOLD}")
    check_range("student_depth", student_depth, 1, whole=True)
    problem = _unusable(values, student_depth)
    if problem:
        return Suggestion((), 0, 0, threshold, False, problem)
    lowest, highest = float(values.min()), float(values.max())
    share = (values - lowest) / (highest - lowest)
    high = share > threshold
    first, last = _run(high), _run(high[::-1])
    middle = np.flatnonzero(high[first : high.size - last]) + first
    scale = (
        f"{threshold:g} of the way from the lowest intensity, {lowest:.3g} (block {int(values.argmin())}), to the "
        f"highest, {highest:.3g} (block {int(values.argmax())})"
    )
    if not first or not last or middle.size:
        return Suggestion((), first, last, threshold, False, _unsupported(share, high, first, last, middle, scale))
    depth = values.size
    near, far = _fit(first, last, student_depth)
    dropped = [*range(near, first), *range(depth - last, depth - far)]
    pairs = [(i, i) for i in range(near)]
    pairs += [(student_depth - far + i, depth - far + i) for i in range(far)]
    same = f"Any threshold from about {share[~high].max():.2f} to {share[high].min():.2f} gives the same runs."
    reason = (
        f"The teacher's profile is high in the {_end('first', first)} and the {_end('last', last)} of {depth}, and "
        f"nowhere between: high is above {scale}. {same} They go with the {_end('first', near)} and the "
        f"{_end('last', far)} of the student's {student_depth}."
    )
    if dropped:
        reason += (
            f" As {first + last} do not fit into {student_depth}, the longer run was cut at its inner end, which "
            f"leaves {_spans(np.asarray(dropped))} of the teacher without a partner."
        )
    return Suggestion(tuple(pairs), first, last, threshold, True, reason)


def suggest_stages(student_stages: int, teacher_stages: int) -> Suggestion:
    """Pairs for two networks in stages, such as Swin: stage i with stage i, as SpectralKD does.

    No profile is read: stages have different numbers of channels, by which the intensity is divided, so their
    intensities do not compare.

    Args:
      student_stages: how many the student has, 1 or more.
      teacher_stages: likewise the teacher.

    Returns:
      A Suggestion; not supported if the numbers differ.
    """
    if student_stages != teacher_stages:
        reason = (
            f"The student has {student_stages} stages and the teacher {teacher_stages}. Stage i goes with stage i, so "
            "some would be left out."
        )
        return Suggestion((), 0, 0, None, False, reason)
    reason = (
        f"Both networks are built in {student_stages} stages. Stage i goes with stage i, as in SpectralKD for Swin. "
        "No profile was read, since the intensities of stages with different numbers of channels do not compare."
    )
    return Suggestion(tuple((i, i) for i in range(student_stages)), 0, 0, None, True, reason)


def _unusable(values: np.ndarray, student_depth: int) -> str:
    """The reason why the profile cannot be used, or ''."""
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        more = f" and {bad.size - 1} more" if bad.size > 1 else ""
        return (
            f"The intensity of teacher block {bad[0]}{more} is {values[bad[0]]}. A network with such features is "
            "broken, or was computed in a precision that overflows."
        )
    if values.size < 3:
        return f"The teacher has {values.size} blocks, but the rule needs at least three: two ends and a middle."
    if student_depth < 2:
        return "The student has one block, which cannot be its first and its last."
    lowest, highest, size = float(values.min()), float(values.max()), float(np.abs(values).max())
    if size == 0 or highest / size - lowest / size <= FLAT:
        percent = 100 * (highest / size - lowest / size) if size else 0.0
        return (
            f"The profile is flat: the intensities of all {values.size} teacher blocks lie between {lowest:.3g} and "
            f"{highest:.3g}, {percent:.1f} % of the highest apart. Up to {100 * FLAT:g} % no block counts as high. "
            f"{BARELY_TRAINED}"
        )
    return ""


def _unsupported(share: np.ndarray, high: np.ndarray, first: int, last: int, middle: np.ndarray, scale: str) -> str:
    """The reason why the high blocks do not support the rule."""
    steps = np.diff(share)
    shape = "It rises from block to block. " if (steps >= 0).all() else ""
    shape = "It falls from block to block. " if (steps <= 0).all() else shape
    found = f"High, that is above {scale}, are the blocks {_spans(np.flatnonzero(high))} of {high.size}."
    missing = [f"block {i} lies at {share[i]:.2f}" for i, run in ((0, first), (high.size - 1, last)) if not run]
    if missing:
        where = " and ".join(missing)
        return f"The profile is not high at both ends. {shape}{found} Of that way, {where}. {BARELY_TRAINED}"
    return (
        f"The profile is high at both ends (the {_end('first', first)} and the {_end('last', last)}), but also between "
        f"them. {found} The highest of the middle, block {int(middle[share[middle].argmax()])}, lies at "
        f"{share[middle].max():.2f}."
    )


def _run(high: np.ndarray) -> int:
    """Number of leading True entries."""
    return int(high.size if high.all() else high.argmin())


def _fit(first: int, last: int, depth: int) -> tuple[int, int]:
    """Lengths of both runs after shortening the longer one (the first if equal) until they fit into `depth` blocks."""
    while first + last > depth:
        if first >= last:
            first -= 1
        else:
            last -= 1
    return first, last


def _end(side: str, count: int) -> str:
    return f"{side} block" if count == 1 else f"{side} {count} blocks"


def _spans(blocks: np.ndarray) -> str:
    """[0, 1, 18, 19] -> '0-1, 18-19'."""
    groups = np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1)
    return ", ".join(str(g[0]) if g.size == 1 else f"{g[0]}-{g[-1]}" for g in groups)
