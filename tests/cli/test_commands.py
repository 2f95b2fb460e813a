"""`jaxkd COMMAND` and recipes by name: from any folder, also out of the wheel."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxkd import __main__ as jaxkd_command
from jaxkd import __version__, main
from jaxkd.cli import training_config
from jaxkd.cli.commands import COMMANDS
from jaxkd.config.packaged import recipes
from jaxkd.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_command_has_a_name_and_the_names_are_known(capsys):
    files = {p.stem for p in (ROOT / "jaxkd").glob("*.py")} - {"__init__", "__main__", "errors"}
    assert files == {module for module, _ in COMMANDS.values() if "." not in module}
    assert jaxkd_command.main([]) == 0 and jaxkd_command.main(["--version"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name}" in said for name in COMMANDS) and said.endswith(f"jaxkd {__version__}\n")
    for word, meant in (("trian", "train"), ("main", "train"), ("doktor", "doctor")):
        assert jaxkd_command.main([word]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f'jaxkd: "{word}" is not a command. Did you mean "{meant}"? There are train, ')


def test_help_and_fields_are_as_wide_as_the_terminal_and_misspelt_options_get_a_suggestion(capsys, monkeypatch):
    for columns, most in (("60", 60), ("300", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        for words in (["--help"], ["train", "--help"], ["train", "--fields", "schedule"], ["convert", "--help"]):
            with contextlib.suppress(SystemExit):
                jaxkd_command.main(words)
        lines = capsys.readouterr().out.splitlines()
        text = [line for line in lines if not line.lstrip().startswith(("jaxkd ", "usage:"))]
        assert most - 10 < max(map(len, text)) <= most and any("jaxkd train --config=deit_cait" in x for x in lines)
    for words in (["convert", "--weigths=x"], ["evaluate", "--weigths=x", "--data=x"], ["analyze", "--weigths=x"]):
        with pytest.raises(SystemExit):
            jaxkd_command.main(words)
        assert '--weigths is not an option. Did you mean "--weights"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("start", "prefix", "usage"),
    [
        (["-m", "jaxkd", "train"], "jaxkd train", "python -m jaxkd train"),
        (["-m", "jaxkd.main"], "jaxkd", "python -m jaxkd.main"),
        (["jaxkd", "train"], "jaxkd train", "jaxkd train"),  # as the installed program, whose file is called jaxkd
    ],
)
def test_messages_name_what_was_typed_and_load_no_jax(start, prefix, usage, tmp_path):
    script = (
        "import sys, jaxkd.__main__ as m\ntry:\n  sys.exit(m.main())\nfinally:\n  assert 'jax' not in sys.modules\n"
    )
    (tmp_path / "jaxkd").write_text(script)
    command = [sys.executable, *start, "--workdir=runs/a"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    example = "--config=deit_cait:embedded --workdir=runs/first_light"
    assert done.stderr == f"{prefix}: No --config was given. For example: {usage} {example}\n" and done.returncode == 2


def test_recipes_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = training_config.parse(["--config=lift_cait:embedded,small", "--workdir=a"]).config
    assert config.student.name.startswith("lift_deit_small") and config.data.source == "embedded:digits"
    config = training_config.parse(["--config", "encoding_mismatch:scale=tiny", "--workdir=a"], "study").config
    assert config.study.groups
    assert {"deit_cait", "supervised", "encoding_mismatch"} <= set(recipes())
    Path("mine.py").write_text(recipes()["supervised"].read_text())  # a path works as before, here with a word
    assert training_config.parse(["--config=mine.py:cait_xxs24_224", "--workdir=a"]).config.student.name[:4] == "cait"
    for name, words in (
        ("deit_cat", 'is no recipe of jaxkd. Did you mean "deit_cait"'),
        ("configs/deit_cait.py", 'is not a file. Did you mean "deit_cait"? A config is'),
        ("mime.py", 'is not a file. Did you mean "mine.py"?'),
    ):
        with pytest.raises(ConfigError) as caught:
            training_config.parse([f"--config={name}", "--workdir=a"])
        assert words in str(caught.value) and "swin_swin" in str(caught.value)


def test_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name, (module, _) in COMMANDS.items():
        command = importlib.import_module(f"jaxkd.{module}").main
        with contextlib.suppress(SystemExit):
            command(["--help"])
        text = capsys.readouterr().out
        lines = text.splitlines()
        if "--help-all" in text:
            with contextlib.suppress(SystemExit):
                command(["--help-all"])
            shown, everything = (re.findall(r"(?m)^  (--\S+)", t) for t in (text, capsys.readouterr().out))
            assert f"show {len({*everything} - {*shown})} more options" in text, name
        assert lines[0].startswith("usage: ") and any(f"    jaxkd {name} " in line for line in lines[:9]), name
        assert len(lines) <= 45, (name, len(lines))
        assert max(map(len, lines)) <= 120, name


def test_fields_have_type_default_meaning_and_recipes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main.main(["--fields", "schedule.steps"]) == 0
    said = capsys.readouterr().out
    assert said == (
        "--config.schedule.steps=0    (int)\n    length of the schedule, and of the run; 0: train.epochs\n"
        "    2000000 in mdbn_x4\n"
    )
    assert main.main(["--fields=optimizer.*"]) == 0 and main.main(["--fields"]) == 0
    said = capsys.readouterr().out
    assert said.count("--config.optimizer.clip_norm=") == 2
    with pytest.raises(SystemExit):
        main.main(["--fields=optimiser.clipnorm"])
    assert 'matches no field. Did you mean "optimizer.clip_norm"' in capsys.readouterr().err


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_recipe(tmp_path):
    pytest.importorskip("setuptools")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("jaxkd", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('..'))"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    shutil.unpack_archive(next(tmp_path.glob(f"jaxkd-{__version__}-*.whl")), tmp_path / "site", "zip")
    there = {p.relative_to(tmp_path / "site") for p in (tmp_path / "site").rglob("*.*")}
    assert {p.relative_to(tree) for p in (tree / "jaxkd").rglob("*.*")} <= there
    wanted = {Path("jaxkd_recipes") / p.relative_to(tree / "configs") for p in (tree / "configs").rglob("*.py")}
    assert wanted <= there
    command = [sys.executable, "-m", "jaxkd", "plan", "--config=swin_swin:embeded", "--topology=cpu:1"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, cwd=tmp_path / "site", env=environment, capture_output=True, text=True)
    assert 'The config does not understand ":embeded". Did you mean "embedded"?' in done.stderr
