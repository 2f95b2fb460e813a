"""Mistakes in runs of a study and in later stages, which are refused before the first one trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from flax import linen as nn

from jaxkd import data, models
from jaxkd.config import fields
from jaxkd.data.sources import registry as sources
from jaxkd.errors import JaxkdError
from jaxkd.experiment.run import run
from jaxkd.experiment.study.runner import run_study
from jaxkd.experiment.sweep import run_stages
from jaxkd.models import registry as networks


class OwnNetwork(nn.Module):
    """A user's network: ten classes, and no argument for them or for colours."""

    width: int = 8
    img_size: int = 16

    @nn.compact
    def __call__(self, images, train=False, *, taps=(), offsets=None):
        return nn.Dense(10, name="head")(nn.Dense(self.width)(images.mean(axis=(1, 2)))), {}


STUDENT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
TEACHER = {**STUDENT, "embed_dim": 48, "depth_token_only": 1}
ALONE = {"task": "classification", "teacher.name": "", "teacher.weights": "", "teacher.args": {}}
SPECTRAL = {"distill.preset": "spectral"}


def config_of(**more):
    changes = {
        "task": "distillation",
        "student.args": STUDENT,
        "teacher.name": "cait_xxs24_224",
        "teacher.weights": "stage:teacher",
        "teacher.args": TEACHER,
        "data.source": "embedded:digits",
        "data.workers": 0,
        "train.batch_size": 16,
        "stages": ({"name": "teacher", **ALONE, "student.name": "cait_xxs24_224", "student.args": TEACHER},),
    }
    return fields.change(fields.base(), changes | more).lock()


def staged(*later, **more):
    """The teacher, then stages of these changes."""
    config = config_of(**more)
    return fields.change(config, {"stages": (*config.stages, *later)}).lock()


class Begun:
    """Stands in for the training of stages: keeps their names, and ends with stage `last`."""

    def __init__(self, last="teacher"):
        self.last, self.titles = last, []

    def __call__(self, config, workdir, console, title):
        self.titles.append(title)
        return {"finished": title != self.last}


def term(loss, **options):
    return {"distill.terms": ({"loss": loss, **options},)}


MISTAKES = (
    ({**SPECTRAL, "distill.pairs": ((0, 0), (9, 1))}, r"pairs\[1\] names layer 9 of the student"),
    ({**SPECTRAL, "distill.pairs": (("block_1", "block_99"),)}, "layer 'block_99' of the teacher.*Did you mean"),
    ({**SPECTRAL, "distill.pairs": (("lifted", "block_1"),)}, "layer 'lifted' of the student, which does not exist"),
    (
        term("feature_cosine", pairs="last", projector={"student": "linear", "width": 7}),
        "student 7 channels and the teacher 48",
    ),
    (term("feature_cosine", pairs="last", projector="layernorm"), r'give the term "projector": "linear"\.'),
    (term("mse", pairs="last", projector="lin"), "'lin', which does not exist. Did you mean \"linear\".*conv1x1 is an"),
    (term("mse", pairs="last", frozen=True), "is frozen, but has no parameters"),
    (term("mse", pairs=(("attn_0", "attn_0"),)), 'compares feature maps, but its pairs name "attn_0", an attention'),
    (term("attention_kl", pairs="last"), 'Add "surplus": "drop"'),
    (term("kl", temperature=-1), "temperature=-1.0 is out of range"),
    (term("distillation_token"), "reads two heads, but the student has one"),
    ({"data.per_class": 1000, "distill.preset": "soft"}, "data.per_class=1000 asks .* embedded:digits has fewer in 10"),
    ({"optimizer.learning_rate": 1e-9, "distill.preset": "soft"}, "below schedule.min_lr"),
    ({"data.augment.auto_augment": "rand-m9-x", "distill.preset": "soft"}, "rand-m9-x"),
    (
        {
            **{"student.name": "swin_tiny_patch4_window7_224", "student.args": {"img_size": 32, "window_size": 2}},
            **{
                "optimizer.decay_tokens": True,
                "teacher.args.img_size": 32,
                "teacher.resize": True,
                "distill.preset": "soft",
            },
        },
        "decay_tokens=True, but swin_tiny",
    ),
    ({"student.args.num_heads": 5, "distill.preset": "soft"}, "24 channels do not divide by num_heads=5"),
)


@pytest.mark.parametrize(("changes", "words"), MISTAKES)
def test_a_mistake_in_one_run_of_a_study_is_refused_before_all(tmp_path, changes, words):
    good = {"name": "good", "distill.preset": "soft"}
    groups = ({"name": "deit", "members": (good, {"name": "x", **changes})},)
    config = config_of(**{"study.groups": groups, "study.seeds": (0, 1)})
    with pytest.raises(JaxkdError, match=rf'Run "deit/x/0" of the study: .*{words}'):
        run_study(config, tmp_path, population=False, dry_run=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (MISTAKES[3][0], MISTAKES[3][1]),
        (MISTAKES[8][0], MISTAKES[8][1]),
        ({"data.per_class": 1000, "distill.preset": "soft"}, "data.per_class=1000"),
        ({"distill.preset": "soft", "teacher.args.embed_dim": 96}, r"teacher\.weights=.* differ, the first .*96.*48"),
        (
            {"population": ({"name": "a", "distill.preset": "soft"}, {"name": "b", **term("hint", pairs=((0, 9),))})},
            r'Member "b" of config\.population: .*layer 9 of the teacher',
        ),
        (
            {
                "distill.pairs": "last",
                "population": (
                    {"name": "a", "distill.preset": "spectral"},
                    {"name": "b", **term("spectral", pairs=(("attn_0", "attn_1"),))},
                ),
            },
            r'Member "b" of config\.population: The term "spectral" compares feature maps',
        ),
    ],
)
def test_a_mistake_in_a_later_stage_is_refused_before_the_first(tmp_path, stage, words):
    with pytest.raises(JaxkdError, match=f'Stage "students": .*{words}'):
        run(staged({"name": "students", **stage}), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "restoration", "student.name": "mdbn_x2", "data.source": "/pairs"},
        {"task": "contrastive", "student.name": "eeg_words_tiny", "data.source": "embedded:synthetic_zuco"},
    ],
)
def test_stages_of_other_tasks_are_checked(tmp_path, changes):
    later = {"name": "second", "student.weights": "stage:first", "student.freeze": ("nothing",)}
    config = fields.change(fields.base(), {**changes, "stages": ({"name": "first"}, later)}).lock()
    with pytest.raises(JaxkdError, match='Stage "second": .*nothing'):
        run(config, tmp_path)
    assert not any(tmp_path.iterdir())


def test_stages_that_can_start_run_and_finished_ones_are_not_checked(tmp_path):
    """Pairs that are chosen later, a teacher that its stage describes, a Hub id, and a mistake in what has ended."""
    later = (
        {"name": "auto", "distill.preset": "mse", "distill.pairs": "auto"},
        {"name": "as_trained", "distill.preset": "soft", "teacher.args": {}},
        {"name": "hub", "distill.preset": "soft", "teacher.weights": "timm/cait_xxs24_224.fb_dist_in1k"},
        {"name": "ended", **MISTAKES[0][0]},
    )
    (tmp_path / "ended").mkdir()
    (tmp_path / "ended" / "result.json").write_text("{}")
    begun = Begun("ended")
    run_stages(staged(*later), tmp_path, begun, None)
    assert begun.titles == ["teacher", "auto", "as_trained", "hub", "ended"]


@pytest.mark.parametrize("width", [4, 5])
def test_a_network_of_a_plugin_is_compared_with_the_stage_that_trains_it(tmp_path, monkeypatch, width):
    """It has no name in timm's format, and `num_classes` is no argument of it."""
    monkeypatch.setattr(networks, "REGISTRY", dict(networks.REGISTRY))
    models.register("own_network", OwnNetwork, models.ModelSpec("own_network", input_size=(16, 16), num_classes=10))
    stage = {"name": "teacher", **ALONE, "student.name": "own_network", "student.args": {"width": 4}}
    own = {"student.name": "own_network", "student.args": {"width": 8}, "teacher.name": "own_network"}
    later = {"name": "students", **own, "teacher.args": {"width": width}, "distill.preset": "soft"}
    config = fields.change(config_of(), {"stages": (stage, later)}).lock()
    if width == 4:
        assert run_stages(config, tmp_path, begun := Begun(), None) and begun.titles == ["teacher"]
    else:
        with pytest.raises(JaxkdError, match=r'Stage "students": teacher\.weights=.*2 differ, .*5.*4'):
            run_stages(config, tmp_path, Begun(), None)


def test_a_stage_may_be_named_by_any_path_and_a_folder_that_is_not_there_is_not_checked(tmp_path, monkeypatch):
    """Without `teacher.args` the network is that of the stage, and of such a folder it is not known yet."""
    monkeypatch.chdir(tmp_path)
    folders = (
        "w/teacher/",
        "w/teacher/checkpoints/10",
        "./w/../w/teacher",
        f"{tmp_path}/w/teacher/members/x",
        "runs/x",
    )
    same = term("feature_cosine", pairs="last")  # as wide as the stage, which the default network is not
    wide = {"student.args.embed_dim": 48, **same, "teacher.args": {}}
    later = [{"name": f"s{i}", **wide, "teacher.weights": folder} for i, folder in enumerate(folders)]
    assert not run_stages(staged(*later), tmp_path / "w", Begun(), None)["finished"]
    later[1] |= term("feature_cosine", pairs=((0, 9),))
    with pytest.raises(JaxkdError, match='Stage "s1": .*layer 9 of the teacher'):
        run_stages(staged(*later), Path("w"), Begun(), None)


def test_the_data_are_listed_once_for_the_check_and_all_stages(tmp_path, monkeypatch):
    listed = []

    def open_digits(spec, split, *, exif):
        listed.append(split)
        return data.open_source("embedded:digits", split)

    monkeypatch.setattr(sources, "OPENERS", dict(sources.OPENERS))
    data.register_source("listed:", open_digits)

    def run_one(config, workdir, console, title):
        data.open_source(config.data.source, "train")
        return {"finished": title != "b"}

    later = [{"name": name, "distill.preset": "soft", "data.per_class": count} for name, count in (("a", 9), ("b", 8))]
    run_stages(staged(*later, **{"data.source": "listed:"}), tmp_path, run_one, None)
    assert listed == ["train"]
    data.open_source("listed:", "train")
    assert listed == ["train", "train"]  # a later call lists anew
