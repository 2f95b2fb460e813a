"""Pairs of layers: every way to write them, and every way to get them wrong."""

import pytest
from ml_collections import ConfigDict

from jaxkd.distill import check_pairs, profile_taps, resolve_pairs, suggest
from jaxkd.errors import ConfigError, ShapeError, TapError, UnknownNameError


def vit_taps(depth, *extra):
    return tuple(f"{kind}_{i}" for i in range(depth) for kind in ("attn", "block", "prefix")) + extra + ("pre_logits",)


def swin_taps(depths):
    rows = []
    for i, depth in enumerate(depths):
        rows += [f"stage_{i}.block_{j}" for j in range(depth)] + [f"stage_{i}"]
    return (*rows, "pre_logits")


DEIT = vit_taps(12)
CAIT = vit_taps(24, "cls_block_0", "cls_block_1")
SWIN_T, SWIN_S = swin_taps((2, 2, 6, 2)), swin_taps((2, 2, 18, 2))
PUBLISHED = ((0, 0), (1, 1), (6, 18), (7, 19), (8, 20), (9, 21), (10, 22), (11, 23))
RESOLVED = tuple((f"block_{s}", f"block_{t}") for s, t in PUBLISHED)


@pytest.mark.parametrize(
    "spec",
    [
        PUBLISHED,
        [list(p) for p in PUBLISHED],
        str(PUBLISHED),
        str(PUBLISHED)[1:-1],
        RESOLVED,
        {"student": [0, 1, 6, 7, 8, 9, 10, 11], "teacher": [0, 1, 18, 19, 20, 21, 22, 23]},
        ConfigDict({"p": {"student": [0, 1, 6, 7, 8, 9, 10, 11], "teacher": [0, 1, 18, 19, 20, 21, 22, 23]}}).p,
    ],
)
def test_the_published_pairs_in_every_form(spec):
    assert resolve_pairs(spec, DEIT, CAIT) == RESOLVED


@pytest.mark.parametrize("spec", ["", None, (), [], "  "])
def test_no_pairs(spec):
    assert resolve_pairs(spec, DEIT, CAIT) == ()


@pytest.mark.parametrize(
    ("spec", "student", "teacher", "expected"),
    [
        ("last", DEIT, CAIT, (("block_11", "block_23"),)),
        ("first", DEIT, CAIT, (("block_0", "block_0"),)),
        ("first+last", DEIT, CAIT, (("block_0", "block_0"), ("block_11", "block_23"))),
        ("last", SWIN_T, SWIN_S, (("stage_3", "stage_3"),)),
        ("first+last", DEIT, SWIN_S, (("block_0", "stage_0"), ("block_11", "stage_3"))),
        ("first+last", vit_taps(1), vit_taps(1), (("block_0", "block_0"),)),
        ("stages", SWIN_T, SWIN_S, tuple((f"stage_{i}", f"stage_{i}") for i in range(4))),
        (((0, 0), (3, 3)), SWIN_T, SWIN_S, (("stage_0", "stage_0"), ("stage_3", "stage_3"))),
        ((("stage_2.block_5", 11),), SWIN_T, DEIT, (("stage_2.block_5", "block_11"),)),
        ((("lifted", "block_23"), (0, 0)), (*DEIT, "lifted"), CAIT, (("lifted", "block_23"), ("block_0", "block_0"))),
        (((11, 22), (11, 23)), DEIT, CAIT, (("block_11", "block_22"), ("block_11", "block_23"))),
    ],
)
def test_names_numbers_and_taps(spec, student, teacher, expected):
    assert resolve_pairs(spec, student, teacher) == expected


@pytest.mark.parametrize(
    ("spec", "student", "teacher", "error", "text"),
    [
        (
            ((0, 0), (12, 23)),
            DEIT,
            CAIT,
            TapError,
            r"pairs\[1\] names layer 12 of the student.*12 layers: block_0 ... block_11",
        ),
        (
            ((0, 0), (11, 24)),
            DEIT,
            CAIT,
            TapError,
            r"pairs\[1\] names layer 24 of the teacher.*24 layers: block_0 ... block_23",
        ),
        (((4, 0),), SWIN_T, SWIN_S, TapError, r"layer 4 of the student.*4 layers: stage_0 ... stage_3"),
        (
            (("block_21", "block_23"),),
            DEIT,
            CAIT,
            TapError,
            r"'block_21' of the student.*Did you mean.*block_0 ... block_11",
        ),
        (
            (("block_1", "stage_3"),),
            DEIT,
            CAIT,
            TapError,
            r"'stage_3' of the teacher.*block_0 ... block_23.*cls_block_0",
        ),
        (((-1, 23),), DEIT, CAIT, ConfigError, r"layer -1 of the student.*counted from 0.*Write 11\."),
        (((0, -25),), DEIT, CAIT, ConfigError, r"layer -25 of the teacher.*Write a number from 0 to 23\."),
        (((0, 0), (1, 1), (0, 0)), DEIT, CAIT, ConfigError, r"\('block_0', 'block_0'\) is there 2 times.*once"),
        (((0, 0), ("block_0", "block_0")), DEIT, CAIT, ConfigError, r"is there 2 times"),
        (
            {"student": [0, 1, 6], "teacher": [0, 1]},
            DEIT,
            CAIT,
            ConfigError,
            r"3 student layers \[0, 1, 6\] and 2 teacher.*same length",
        ),
        ({"student": [0], "techer": [0]}, DEIT, CAIT, ConfigError, r'techer.*Write \{"student": \[0, 6\]'),
        ({"student": 0, "teacher": 0}, DEIT, CAIT, ConfigError, r"one list of layers per network"),
        ((0, 11), DEIT, CAIT, ConfigError, r"pairs\[0\]=0 is not a pair.*\(\(0, 0\), \(6, 18\)\)"),
        (("block_0", "block_11"), DEIT, CAIT, ConfigError, r"pairs\[0\]='block_0' is not a pair"),
        (((0, 0, 1),), DEIT, CAIT, ConfigError, r"pairs\[0\]=\(0, 0, 1\) is not a pair"),
        (((0.5, 1),), DEIT, CAIT, ConfigError, r"layer 0.5 of the student"),
        (((True, 1),), DEIT, CAIT, ConfigError, r"layer True of the student"),
        (11, DEIT, CAIT, ConfigError, r"pairs=11 is not a list of pairs"),
        ("((0, 0), (1, 1)", DEIT, CAIT, ConfigError, r"cannot be read"),
        (
            "lst",
            DEIT,
            CAIT,
            UnknownNameError,
            r'pairs="lst".*Did you mean "last".*first, last, first\+last, stages, auto',
        ),
        ("autos", DEIT, CAIT, UnknownNameError, 'Did you mean "auto"'),
        ("auto", DEIT, CAIT, ConfigError, r"without a profile.*training run.*profile=.*\(\(0, 0\), \(11, 23\)\)"),
        ("auto", DEIT, SWIN_S, ConfigError, r"student has block_0 ... block_11 and the teacher stage_0 ... stage_3"),
        ("auto", SWIN_T, CAIT, ConfigError, r"blocks with blocks or stages with stages.*first\+last"),
        ("auto", swin_taps((1, 1)), SWIN_S, ConfigError, r"student has 2 stages and the teacher 4"),
        ("auto", ("pre_logits",), CAIT, TapError, r"The student has no taps block_i or stage_i.*pre_logits"),
        ("stages", DEIT, SWIN_S, TapError, r"the student has none: its layers are block_0 ... block_11.*first\+last"),
        ("stages", SWIN_T, CAIT, TapError, r"the teacher has none"),
        ("stages", swin_taps((1, 1)), SWIN_S, ConfigError, r"student has 2 \(stage_0 ... stage_1\) and the teacher 4"),
        ("last", ("pre_logits",), CAIT, TapError, r"The student has no taps block_i or stage_i.*pre_logits"),
    ],
)
def test_mistakes_say_what_why_and_what_to_do(spec, student, teacher, error, text):
    with pytest.raises(error, match=text):
        resolve_pairs(spec, student, teacher)


def high_at_the_ends(first, middle, last):
    return [4.0] * first + [1.5] * middle + [5.0] * last


@pytest.mark.parametrize(
    ("profile", "student", "teacher", "expected"),
    [
        (high_at_the_ends(2, 16, 6), DEIT, CAIT, RESOLVED),
        (tuple(high_at_the_ends(1, 21, 2)), DEIT, CAIT, (RESOLVED[0], ("block_10", "block_22"), RESOLVED[-1])),
        (None, SWIN_T, SWIN_S, tuple((f"stage_{i}", f"stage_{i}") for i in range(4))),
    ],
)
def test_auto_reads_the_profile_of_blocks_and_takes_all_stages(profile, student, teacher, expected):
    assert resolve_pairs("auto", student, teacher, profile=profile) == expected
    # what it found is what a config could have said
    found = suggest(student, teacher, profile)
    assert found.supported and resolve_pairs(found.pairs, student, teacher) == expected


def test_auto_without_support_says_why_with_the_numbers_and_what_to_write():
    with pytest.raises(ConfigError) as caught:
        resolve_pairs("auto", vit_taps(4), vit_taps(5), profile=[0.1, 0.2, 0.3, 0.4, 0.5])
    text = str(caught.value)
    for words in (
        "rises from block to block",
        "block_0 0.1, block_1 0.2, block_2 0.3, block_3 0.4, block_4 0.5.",
        'pairs="first+last"',
    ):
        assert words in text
    assert "((0, 0), (3, 4))" in text


def test_the_profile_is_of_the_layers_that_numbers_count():
    assert profile_taps(CAIT) == tuple(f"block_{i}" for i in range(24))  # no class-attention blocks
    assert profile_taps(SWIN_S) == ()
    with pytest.raises(ShapeError, match="23 values, but the teacher has 24 layers: block_0 ... block_23"):
        resolve_pairs("auto", DEIT, CAIT, profile=[1.0] * 23)
    # any other spec has no use for it
    assert resolve_pairs("last", DEIT, CAIT, profile=[1.0]) == resolve_pairs("last", DEIT, CAIT)


def test_check_pairs():
    ours = {"block_11": (8, 14, 14, 192), "stage_3": (8, 7, 7, 768)}
    theirs = {"block_23": (8, 14, 14, 384)}
    check_pairs((("block_11", "block_23"),), ours, theirs)
    check_pairs((), {}, {})
    text = r'\("stage_3", "block_23"\) cannot be compared.*\(8, 7, 7, 768\).*\(8, 14, 14, 384\).*grids.*differ.*Pair'
    with pytest.raises(ShapeError, match=text):
        check_pairs((("block_11", "block_23"), ("stage_3", "block_23")), ours, theirs)
    with pytest.raises(TapError, match=r'reads "block_0" of the student.*block_11, stage_3'):
        check_pairs((("block_0", "block_23"),), ours, theirs)
