"""The rule that reads layers off an intensity profile: the published pairs, and every profile that gives none."""

from __future__ import annotations

import re

import numpy as np
import pytest

from jaxkd.analysis.layer_selection import FLAT, suggest_pairs, suggest_stages
from jaxkd.config.recipes import DEIT_CAIT_PAIRS
from jaxkd.errors import ConfigError, ShapeError

# High in the first two and the last six of 24 blocks, with an uneven middle.
MIDDLE = [0.40, 0.33, 0.27, 0.24, 0.22, 0.2, 0.21, 0.2, 0.2, 0.21, 0.23, 0.25, 0.28, 0.31, 0.36, 0.45]
CAIT = np.array([0.81, 0.64, *MIDDLE, 0.63, 0.7, 0.78, 0.86, 0.93, 1.0])


def profile(first: int, middle: int, last: int) -> list[float]:
    return [3.0] * first + [1.0] * middle + [3.0] * last


def test_the_published_pairs_of_deit_and_cait():
    found = suggest_pairs(CAIT, 12)
    assert found.supported and found.pairs == DEIT_CAIT_PAIRS
    assert (found.first, found.last, found.threshold) == (2, 6, 0.5)
    # 0.45 and 0.63 on a range from 0.2 to 1: shares 0.3125 and 0.5375
    assert "Any threshold from about 0.31 to 0.54 gives the same runs" in found.reason
    for words in ("first 2 blocks and the last 6 blocks of 24", "0.2 (block 7)", "1 (block 23)", "student's 12"):
        assert words in found.reason


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 0.37, 1.0, 3e4, 1e30])
def test_a_factor_changes_nothing(factor):
    assert suggest_pairs(CAIT * factor, 12).pairs == DEIT_CAIT_PAIRS
    flat = suggest_pairs((1 + 0.9 * FLAT * CAIT) * factor, 12)
    assert not flat.supported and "flat" in flat.reason


@pytest.mark.parametrize(
    ("threshold", "first", "last"), [(0.15, 4, 8), (0.22, 3, 7), (0.3, 2, 7), (0.52, 2, 6), (0.6, 1, 5), (0.75, 1, 3)]
)
def test_the_threshold_is_a_share_of_the_range(threshold, first, last):
    found = suggest_pairs(CAIT, 12, threshold=threshold)
    assert (found.first, found.last, found.supported, found.threshold) == (first, last, True, threshold)
    assert len(found.pairs) == first + last


@pytest.mark.parametrize(
    ("runs", "student", "expected"),
    [
        ((2, 16, 6), 24, [(0, 0), (1, 1), *((i, i) for i in range(18, 24))]),
        ((2, 16, 6), 30, [(0, 0), (1, 1), *((i + 6, i) for i in range(18, 24))]),
        ((2, 16, 6), 8, [(0, 0), (1, 1), *((i - 16, i) for i in range(18, 24))]),
        ((1, 1, 1), 12, [(0, 0), (11, 2)]),
        # too short for both runs: the longer one gives way from within, the first where they are equal
        ((2, 16, 6), 6, [(0, 0), (1, 1), (2, 20), (3, 21), (4, 22), (5, 23)]),
        ((2, 16, 6), 4, [(0, 0), (1, 1), (2, 22), (3, 23)]),
        ((2, 16, 6), 3, [(0, 0), (1, 22), (2, 23)]),
        ((2, 16, 6), 2, [(0, 0), (1, 23)]),
        ((6, 16, 2), 5, [(0, 0), (1, 1), (2, 2), (3, 22), (4, 23)]),
    ],
)
def test_students_of_any_depth(runs, student, expected):
    found = suggest_pairs(profile(*runs), student)
    assert found.pairs == tuple(expected)
    assert (found.first, found.last) == (runs[0], runs[2])
    assert ("without a partner" in found.reason) == (runs[0] + runs[2] > student)


def test_what_a_short_student_leaves_out_is_said():
    assert "8 do not fit into 6" in suggest_pairs(profile(2, 16, 6), 6).reason
    assert "leaves 18-19 of the teacher without a partner" in suggest_pairs(profile(2, 16, 6), 6).reason
    assert "leaves 1, 18-21 of the teacher without a partner" in suggest_pairs(profile(2, 16, 6), 3).reason


@pytest.mark.parametrize(
    ("values", "student", "words"),
    [
        ([2.0] * 12, 6, "flat: the intensities of all 12 teacher blocks lie between 2 and 2, 0.0 %"),
        ([0.0] * 12, 6, "flat"),
        # a CaiT trained on the digits: the differences are there, but small
        ([0.0918, 0.0914, 0.0919, 0.0937, 0.0946, 0.0952, 0.0939, 0.0943], 6, "between 0.0914 and 0.0952, 4.0 %"),
        (range(1, 25), 12, "rises from block to block.*blocks 12-23 of 24.*block 0 lies at 0.00"),
        (range(24, 0, -1), 12, "falls from block to block.*blocks 0-11 of 24.*block 23 lies at 0.00"),
        ([1, 1, 5, 5, 1, 1], 6, "not high at both ends.*blocks 2-3 of 6.*block 0 lies at 0.00 and block 5 lies at"),
        ([9, 1, 1, 9, 1, 8, 9], 6, "also between them.*blocks 0, 3, 5-6 of 7.*block 3, lies at 1.00"),
        ([3, 1, 2, 1, 1000], 6, "not high at both ends.*the blocks 4 of 5.*block 0 lies at 0.00"),
        ([3, float("nan"), 1, 3], 6, "intensity of teacher block 1 is nan"),
        ([float("nan")] * 4, 6, "teacher block 0 and 3 more is nan"),
        ([3, 1, float("inf")], 6, "teacher block 2 is inf"),
        ([3, 1], 6, "2 blocks, but the rule needs at least three"),
        ([], 6, "0 blocks, but the rule needs at least three"),
        ([3, 1, 3], 1, "The student has one block"),
    ],
)
def test_a_profile_that_does_not_support_the_rule_gives_no_pairs(values, student, words):
    found = suggest_pairs(list(values), student)
    assert not found.supported and found.pairs == ()
    assert re.search(words, found.reason), found.reason


def test_an_unsupported_profile_still_says_what_its_ends_are():
    found = suggest_pairs([9, 8, 1, 7, 1, 9, 9, 9], 12)
    assert (found.supported, found.first, found.last) == (False, 2, 3)
    assert (suggest_pairs(range(24), 12).first, suggest_pairs(range(24), 12).last) == (0, 12)


def test_stages_go_with_stages():
    found = suggest_stages(4, 4)
    assert found.supported and found.pairs == ((0, 0), (1, 1), (2, 2), (3, 3)) and found.threshold is None
    found = suggest_stages(2, 4)
    assert not found.supported and found.pairs == () and "2 stages and the teacher 4" in found.reason


def test_bad_arguments():
    with pytest.raises(ShapeError, match=r"shape \(24, 1\).*one intensity per block"):
        suggest_pairs(CAIT[:, None], 12)
    for threshold in (0.0, 1.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="threshold=.*out of range"):
            suggest_pairs(CAIT, 12, threshold=threshold)
    with pytest.raises(ConfigError, match="student_depth=0"):
        suggest_pairs(CAIT, 0)
