"""docs/published.md: its commands are valid configs of the length that it says, and its hours follow from them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from jaxkd import main
from jaxkd.config.validate import validate

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "published.md").read_text()
H100 = json.loads((ROOT / "benchmarks" / "results" / "nvidia-h100-80gb-hbm3-2026-11-26.json").read_text())["parts"]
NAMES = {
    "deit_tiny_patch16_224": "DeiT-Tiny",
    "deit_small_patch16_224": "DeiT-Small",
    "cait_s24_224": "CaiT-S24",
    "swin_tiny_patch4_window7_224": "Swin-Tiny",
    "swin_small_patch4_window7_224": "Swin-Small",
    "vit_large_patch16_224": "ViT-Large",
    "lift_deit_tiny_patch16_224": "Lift",
    "widelast_deit_tiny_patch16_224": "WideLast",
}
EPOCH = 1_281_167 // 256 * 256  # images, as data.repeats=3 has it


def rows() -> list[tuple[str, str]]:
    """(CONFIG with its options, hours) of each row that has a command for ImageNet."""
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in TEXT.splitlines() if line.startswith("| ")]
    found = [(row[-2].strip("`"), row[-1].strip(" |")) for row in cells if row[-2].startswith("`")]
    return [(command, hours) for command, hours in found if not command.startswith("mdbn")]


def notes() -> list[tuple[str, str]]:
    """(CONFIG with its options, hours) of each such command in a sentence."""
    text = "\n".join(line for line in TEXT.splitlines() if not line.startswith("|"))
    return re.findall(r"`(?!jaxkd|python|--)([\w./]+(?::\S+)? --[^`]+)`, (\S+) h\b", text)


def hours_of(command: str) -> float:
    """H100 hours of a command, by the arithmetic of the page."""
    projector = re.search(r"^(--config\.distill\.terms=.*)$", TEXT, re.M)[1]
    first, *options = shlex.split(command.replace("PROJECTOR", projector))
    fixed = ["--workdir=runs/a", "--config.data.source=/data/imagenet", "--config.precision.compute=bfloat16"]
    config = main.parse([f"--config={first}", *fixed, *options]).config
    validate(config)
    size = {k: float(v) for k, v in re.findall(r"\| ([A-Z]\S+) \| ([\d.]+) (?=\|)", TEXT)}
    teacher = size[NAMES[config.teacher.name]] if config.task == "distillation" else 0.0
    cost = teacher + 3 * size[NAMES[config.student.name]]
    measured = H100["step_time"]["result"]["programs"]["train_step"]["images_per_second"]
    per_epoch = EPOCH / measured / 3600 * cost / (size["CaiT-S24"] + 3 * size["DeiT-Tiny"])
    return config.train.epochs * per_epoch


@pytest.mark.parametrize(("command", "hours"), [*rows(), *notes()], ids=lambda text: text[:60])
def test_a_command_is_a_valid_config_whose_cost_is_the_tables(command, hours, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert hours == f"{hours_of(command):.0f}"


def test_each_command_has_hours_and_their_sum_is_the_pages(monkeypatch):
    monkeypatch.chdir(ROOT)
    total = sum(hours_of(command) for command, _ in rows())
    assert f"with one seed: {total:,.0f} H100 hours; with three seeds {3 * total:,.0f}." in TEXT
    bare = [line for line in TEXT.splitlines() if re.search(r"\| - \| \d+ \|$", line)]
    sentences = "\n".join(line for line in TEXT.splitlines() if not line.startswith("|"))
    assert len(notes()) == len(re.findall(r"`\w+(?:\.py)?(?::\S+)? --config[^`]+`", sentences)) >= 2 and not bare


def test_the_cost_of_mdbn_is_that_of_the_measured_inference():
    found = H100["superres"]["result"]["scales"]["x4"]
    rate = found["gflop"] / 2 * found["programs"]["jaxkd"]["images_per_second"]  # G multiply-adds a second
    hours = 2_000_000 * 3 * 16 * float(re.search(r"64 x 64 pixels, ([\d.]+) G", TEXT)[1]) / rate / 3600
    assert f"| `mdbn_x4` | {hours:.1f} |" in TEXT


def test_every_published_figure_of_the_logs_is_there():
    for figure in ("76.988", "77.078", "77.004", "76.826", "76.868", "76.718", "76.802", "78.074", "77.592"):
        assert figure in TEXT
    assert len(rows()) >= 20
