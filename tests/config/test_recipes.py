"""The table of docs/recipes.md is what the configs say, and the configs are what the authors' code does."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from jaxkd.config import fields
from jaxkd.config.validate import validate
from jaxkd.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = {
    "DeiT-Tiny": ("deit_cait", None),
    "DeiT-Small": ("deit_cait", "student=deit_small_patch16_224"),
    "Swin-Tiny": ("swin_swin", None),
    "Dynamics": ("dynamics", "first_last"),
    "Lift": ("lift_cait", None),
    "WideLast": ("widelast_cait", None),
}


def config_of(name: str, arg: str | None):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def table() -> dict[str, dict[str, object]]:
    """field -> column -> value, as docs/recipes.md prints it."""
    lines = (ROOT / "docs" / "recipes.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| field | DeiT-Tiny"))
    header = [cell.strip() for cell in lines[start].strip("|").split("|")]
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[cells[0].strip("`")] = {k: ast.literal_eval(v) for k, v in zip(header[1:7], cells[1:7], strict=True)}
    return rows


@pytest.mark.parametrize("column", COLUMNS)
def test_the_table_is_what_the_config_says(column):
    given = fields.flatten(config_of(*COLUMNS[column]))
    rows = table()
    assert len(rows) >= 35
    for field, values in rows.items():
        assert given[field] == values[column], field


@pytest.mark.parametrize("column", COLUMNS)
def test_everything_that_is_not_a_default_is_in_the_table(column):
    defaults, given = fields.flatten(fields.base()), fields.flatten(config_of(*COLUMNS[column]))
    names = {"task", "student.name", "teacher.name", "teacher.weights"}
    assert {k for k, v in given.items() if v != defaults.get(k)} - names <= set(table())


@pytest.mark.parametrize(
    ("name", "arg", "preset", "alpha"),
    [
        ("lift", None, "soft+spectral", 0.9),
        ("lift", "alpha=0,feature=mse", "mse", None),
        ("lift", "feature=none", "soft", 0.9),
        ("widelast", None, "soft+mse", 0.9),
        ("widelast", "alpha=0,feature=spectral", "spectral", None),
    ],
)
def test_lift_and_widelast_differ_from_the_last_layer_recipe_in_what_the_authors_change(name, arg, preset, alpha):
    given, last = fields.flatten(config_of(f"{name}_cait", arg)), fields.flatten(config_of("dynamics", "last"))
    feature = preset != "soft"
    expected = {
        "student.name": f"{name}_deit_tiny_patch16_224",
        "optimizer.decay_tokens": True,
        "distill.preset": preset,
        "distill.alpha": alpha,
        "distill.temperature": 1.0 if alpha else None,
        "distill.pairs": "last" if feature else None,
        "distill.feature_weight": 0.2 if feature else None,
    }
    assert {k: v for k, v in given.items() if v != last.get(k)} == {k: v for k, v in expected.items() if v != last[k]}
    rate = given["optimizer.learning_rate"] * given["train.batch_size"] / given["optimizer.reference_batch"]
    assert rate == pytest.approx(2e-3) and given["train.epochs"] == 300


@pytest.mark.parametrize("name", ["lift", "widelast"])
def test_the_words_of_lift_and_widelast(name):
    assert config_of(f"{name}_cait", "small").student.name == f"{name}_deit_small_patch16_224"
    assert config_of("lift_cait", "small").student.args.target_dim == 384
    for arg, words in (("alpha=x", '":alpha=x" is not a number'), ("feature=fft", ":feature"), ("tiny", "small")):
        with pytest.raises(ConfigError) as caught:
            config_of(f"{name}_cait", arg)
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match="leaves no teacher"):
        config_of(f"{name}_cait", "alpha=0,feature=none")


def test_the_learning_rate_peaks_where_the_logs_of_the_authors_do():
    from jaxkd.experiment.build import build_schedule
    from jaxkd.train import LoopSettings

    config = config_of("dynamics", "soft")
    steps = 1_281_024 // 2048
    settings = LoopSettings(300 * steps, steps, 2048, 50, steps, steps)
    schedule = build_schedule(config, settings)
    rates = [float(schedule(epoch * steps)) for epoch in range(300)]
    # train_lr of the published log.txt: 0.0019986 at its highest, 1.02e-5 at its lowest after the warm-up
    assert max(rates) == pytest.approx(0.0019986, rel=1e-4)
    assert rates[-1] == pytest.approx(1.02e-5, rel=3e-2)
    assert rates[0] == rates[1] == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.erase.mode": "rand"}, "data.erase.mode='rand' is set, but nothing reads it"),
        ({"data.mix.prob": 0.5}, "data.mix.prob=0.5 is set, but nothing reads it"),
        ({"data.mix.mixup": 0.8, "data.mix.switch_prob": 0.3}, "only one of mixup and cutmix"),
        ({"data.augment.pad": 2}, "data.augment.pad=2 is set, but nothing reads it"),
        ({"data.augment.kind": "none", "data.augment.scale": (0.5, 1.0)}, "data.augment.scale=(0.5, 1.0) is set"),
        ({"data.repeats": 0}, "data.repeats=0 is out of range"),
        ({"distill.terms": ({"loss": "mse", "pairs": "last"},), "label_smoothing": 0.2}, "label_smoothing=0.2 is set"),
        ({"task": "restoration", "distill.terms": ({"loss": "ce"},)}, "is set, but nothing reads it"),
        ({"schedule.warmup_epochs": 0, "schedule.warmup_lr": 1e-5}, "schedule.warmup_epochs=0"),
        ({"optimizer.decay_tokens": True, "optimizer.weight_decay": 0.0}, "this is optimizer.weight_decay=0"),
        ({"data.mix.mode": "pairs"}, 'Did you mean "pair"'),
        ({"data.augment.interpolation": "bicubik"}, 'Did you mean "bicubic"'),
    ],
)
def test_a_config_that_sets_what_its_mode_never_reads_is_refused(changes, words):
    config = fields.change(fields.base(), {"data.source": "embedded:digits", **changes})
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        ("embedded", 1200),
        ("embedded,steps=2000", 2000),
        ("embedded,steps=x", "steps='x' is out of range"),
        ("embedded,steps=", "steps='' is out of range"),
        ("embedded,steps=0", "steps=0 is out of range"),
        ("steps=9", "Write --config.schedule.steps=N"),
    ],
)
def test_the_length_of_the_embedded_students(arg, expected):
    if isinstance(expected, int):
        assert config_of("deit_cait", arg).stages[1]["schedule.steps"] == expected
        return
    with pytest.raises(ConfigError, match=expected):
        config_of("deit_cait", arg)
