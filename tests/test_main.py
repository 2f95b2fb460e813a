"""The command line: what a stranger reads who makes a mistake, and that nothing of it is a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from pictures import noisy_classes
from random_weights import random_variables

from jaxkd import main, models, weights
from jaxkd.cli import console
from jaxkd.cli.training_config import print_overridden
from jaxkd.config.validate import validate
from jaxkd.errors import DataError
from jaxkd.experiment.lock import WorkdirLock
from jaxkd.experiment.sweep import stage_configs

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3}


@pytest.fixture
def images(tmp_path):
    """A folder of 2 classes with 8 training and 2 validation images each."""
    return noisy_classes(tmp_path / "images", train=8, val=2)


def supervised(source, workdir, *more: str) -> list[str]:
    args = [f"--config.student.args.{k}={v}" for k, v in SMALL.items() if k != "img_size"]
    return [
        f"--config={ROOT}/configs/supervised.py",
        f"--workdir={workdir}",
        f"--config.data.source={source}",
        "--config.student.args.img_size=16",
        *args,
        "--config.train.batch_size=8",
        "--config.train.epochs=3",
        "--config.schedule.warmup_epochs=1",
        "--config.optimizer.reference_batch=0",
        "--config.data.workers=0",
        "--config.log.tensorboard=False",
        *more,
    ]


def distilled(source, workdir, *more: str) -> list[str]:
    argv = supervised(source, workdir, *more)
    argv[0] = f"--config={ROOT}/configs/deit_cait.py"
    return [*argv, *(f"--config.teacher.args.{k}={v}" for k, v in SMALL.items() if k != "img_size")]


FIRST_LINE = """
import sys
from jaxkd import main

def first_line(text, **_):
    print(text, "| JAX loaded:", "jax" in sys.modules)
    sys.exit(0)

main.print = first_line
main.main(sys.argv[1:])
"""


def test_a_run_says_what_it_does_before_it_loads_jax(tmp_path):
    command = [sys.executable, "-c", FIRST_LINE, *supervised("images", tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith(f"{tmp_path}/run: task classification, student deit_tiny"), done.stderr
    assert done.stdout.endswith("loading JAX ... | JAX loaded: False\n")
    wrong = subprocess.run([*command, "--config.optimizer.b1=2"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stdout == "" and "optimizer.b1=2" in wrong.stderr


@pytest.fixture
def complaint(complaint_of):
    """`complaint(argv)` -> the one paragraph that the command prints."""
    return partial(complaint_of, main.main)


def test_a_missing_folder(complaint, tmp_path):
    text = complaint(supervised(tmp_path / "nowhere", tmp_path / "run"))
    assert f'The data folder "{tmp_path}/nowhere" does not exist.' in text and "embedded:digits" in text
    assert not (tmp_path / "run").exists()


def test_an_empty_class(complaint, images, tmp_path):
    (images / "train" / "emu").mkdir()
    assert "holds no images" in complaint(supervised(images, tmp_path / "run"))


def test_a_text_file_named_jpg(complaint, images, tmp_path):
    bad = images / "train" / "cat" / "3.jpg"
    bad.write_text("this is not an image")
    text = complaint(supervised(images, tmp_path / "run"))
    assert f'The file "{bad}" cannot be read as an image' in text


def test_an_unknown_config_field(complaint, images, tmp_path):
    text = complaint(supervised(images, tmp_path / "run", "--config.optimizer.learning_rat=1"))
    assert "--config.optimizer.learning_rat is not a field" in text
    assert 'Did you mean "optimizer.learning_rate"' in text


def test_a_useless_config_field(complaint, images, tmp_path):
    text = complaint(supervised(images, tmp_path / "run", "--config.distill.temperature=2.0"))
    assert "distill.temperature=2.0 is set, but nothing reads it" in text


def test_an_unknown_model(complaint, images, tmp_path):
    text = complaint(supervised(images, tmp_path / "run", "--config.student.name=deit_tini_patch16_224"))
    assert 'The model "deit_tini_patch16_224" is not registered. Did you mean "deit_tiny_patch16_224"' in text


def test_a_tap_out_of_range(complaint, images, tmp_path):
    text = complaint(distilled(images, tmp_path / "run", "--config.distill.pairs=((0, 0), (2, 7))"))
    assert "pairs[1] names layer 7 of the teacher, which does not exist" in text and "block_0 ... block_2" in text


def test_a_field_that_the_recipe_set_is_named_with_the_way_to_change_it(complaint, images, tmp_path):
    text = complaint(distilled(images, tmp_path / "run", "--config.student.args.depth=2"))
    assert text.count("distill.pairs[2] names layer 6 of the student, which does not exist") == 1
    assert "The config file set distill.pairs=((0, 0), (1, 1), (6, 18)" in text
    assert text.endswith("--config.distill.pairs=VALUE changes it.")


def test_a_teacher_of_another_architecture(complaint, images, tmp_path):
    deit = models.create("deit_tiny_patch16_224", num_classes=2, **SMALL)
    variables = random_variables(deit)
    path = tmp_path / "deit.safetensors"
    weights.save_safetensors(path, deit, variables)
    argv = distilled(images, tmp_path / "run", "--config.distill.pairs=last", f"--config.teacher.weights={path}")
    text = complaint(argv)
    assert str(path) in text and "missing from the file" in text and "of another shape" in text
    assert "blocks.0.attn.proj_l.weight" in text


@pytest.mark.slow
def test_a_batch_that_does_not_divide_over_the_devices(images, tmp_path):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    argv = supervised(images, tmp_path / "run", "--config.train.batch_size=12")
    done = subprocess.run(
        [sys.executable, "-m", "jaxkd.main", *argv], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "train.batch_size=12 does not divide over 8 devices" in done.stderr and "8 or 16" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_workdir_of_another_run(complaint, images, tmp_path):
    assert main.main(supervised(images, tmp_path / "run")) == 0
    before = sorted((tmp_path / "run" / "checkpoints").iterdir())
    text = complaint(supervised(images, tmp_path / "run", "--config.optimizer.weight_decay=0.1"))
    assert "belongs to another run" in text and "optimizer.weight_decay: 0.05 there, 0.1 now" in text
    assert sorted((tmp_path / "run" / "checkpoints").iterdir()) == before


def test_a_workdir_that_is_a_file(complaint, images, tmp_path):
    (tmp_path / "run").write_text("")
    assert f'--workdir="{tmp_path}/run" cannot be used (File exists)' in complaint(supervised(images, tmp_path / "run"))
    (tmp_path / "file").write_text("")
    assert "cannot be used (Not a directory)" in complaint(supervised(images, tmp_path / "file" / "run"))


def test_a_tilde_is_the_home_folder_in_every_path(images, tmp_path, monkeypatch, complaint):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main.main(supervised("~/images", "~/run", "--config.train.steps=1")) == 0
    assert (tmp_path / "run" / "result.json").exists() and not (tmp_path / "~").exists()
    assert "a user who does not exist" in complaint(supervised(images, "~nosuchuser/run"))
    assert "holds a NUL character" in complaint(supervised(images, "a\0b"))


def test_a_second_run_in_a_work_directory(complaint, images, tmp_path):
    with WorkdirLock(tmp_path / "run") as lock:
        lock.acquire()
        text = complaint(supervised(images, tmp_path / "run"))
    assert f"in use by another run (process {os.getpid()} on host" in text and len(text.splitlines()) == 1


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing raises OSError
from jaxkd import main
import jaxkd.experiment.run as run
claim = run.claim_workdir
def claim_and_limit(*args):
    claim(*args)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
run.claim_workdir = claim_and_limit
main.main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "file"), [(100, "parameters.txt"), (12_000, "checkpoints/")])
def test_a_full_disk(images, tmp_path, limit, file):
    argv = supervised(images, tmp_path / "run", "--config.train.steps=2", "--config.checkpoint.every_steps=1")
    command = [sys.executable, "-c", LIMITED, str(limit), *argv]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and f"{tmp_path}/run" in done.stderr, done.stderr
    assert "(File too large). No checkpoint was written yet. Free space, then run" in done.stderr
    assert main.main(argv) == 0  # the same command, once there is room


@pytest.mark.slow
def test_a_platform_without_a_device_and_a_terminal_without_characters(images, tmp_path):
    command = [sys.executable, "-m", "jaxkd.main", *supervised(images, tmp_path / "run", "--config.train.steps=1")]
    for platform, code in (("cuda", 2), ("tpu", 2), ("cpu", 0)):
        environment = {**os.environ, "JAX_PLATFORMS": platform, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        words = f'JAX_PLATFORMS="{platform}", and JAX cannot use such a device'
        assert (words in done.stderr and len(done.stderr.splitlines()) == 1) == (code == 2), done.stderr
    assert "top1" in done.stdout and " - " in done.stdout  # in the place of a dot in the middle of the line


def test_a_failed_start_does_not_stand_in_the_way_of_its_correction(complaint, images, tmp_path):
    text = complaint(supervised(images, tmp_path / "run", "--config.schedule.warmup_epochs=9"))
    assert "schedule.warmup_epochs" in text
    assert main.main(supervised(images, tmp_path / "run", "--config.train.steps=1")) == 0


def test_another_number_of_classes(complaint, images, tmp_path):
    text = complaint(supervised(images, tmp_path / "run", "--config.student.args.num_classes=1000"))
    assert "student.args.num_classes=1000, but the data have 2 classes" in text


def test_a_random_head_teaches_no_logits(complaint, images, tmp_path):
    argv = distilled(images, tmp_path / "run", "--config.distill.pairs=last", "--config.teacher.new_head=True")
    assert "would distil the logits of a random classifier" in complaint(argv)


def test_a_teacher_of_more_classes_is_to_be_fine_tuned_first(complaint, images, tmp_path):
    cait = models.create("cait_s24_224", num_classes=5, **SMALL)
    path = tmp_path / "cait.safetensors"
    weights.save_safetensors(path, cait, random_variables(cait))
    argv = distilled(images, tmp_path / "run", "--config.distill.pairs=last", f"--config.teacher.weights={path}")
    text = complaint(argv)
    assert "does not have the 2 classes of" in text and "jaxkd train --config=supervised:cait_s24_224" in text
    assert f"--config.student.weights={path} --config.student.new_head=True" in text and "args.depth=3" in text
    text = complaint([*argv, "--config.distill.preset=spectral"])
    assert text.endswith("add --config.teacher.new_head=True.")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("no such image"), 2),
        (KeyError("a bug"), 1),
        (KeyboardInterrupt(), 128 + signal.SIGINT),
        (KeyboardInterrupt(signal.SIGTERM), 128 + signal.SIGTERM),
    ],
)
def test_an_error_in_one_of_several_processes_does_not_wait_for_the_others(monkeypatch, capsys, error, code):
    import jax

    class Left(BaseException):
        pass

    def leave(number):
        raise Left(number)

    @console.command()
    def failing():
        raise error

    if not isinstance(error, KeyboardInterrupt):  # which returns its code where the process is alone
        with pytest.raises((SystemExit, KeyError)):
            failing()
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Left) as left:
        failing()
    said = "stopped." if isinstance(error, KeyboardInterrupt) else str(error)
    assert left.value.args == (code,) and said in capsys.readouterr().err


def test_a_damaged_config_of_a_run(complaint, images, tmp_path):
    assert main.main(supervised(images, tmp_path / "run", "--config.train.steps=1")) == 0
    (tmp_path / "run" / "config.json").write_text('{"stu')
    assert 'config.json" cannot be read' in complaint(supervised(images, tmp_path / "run", "--config.train.steps=1"))


PRESETS = ("soft", "hard", "spectral", "mse", "soft+spectral", "hard+spectral", "soft+mse", "hard+mse")


@pytest.mark.parametrize("name", ["deit_cait.py", "swin_swin.py", "dynamics.py", "lift_cait.py:embedded"])
def test_every_preset_can_be_chosen_on_the_command_line(name, tmp_path):
    for preset in PRESETS:
        argv = [f"--config={ROOT}/configs/{name}", f"--workdir={tmp_path}", "--config.data.source=/data"]
        config = main.parse([*argv, f"--config.distill.preset={preset}"]).config
        assert config.distill.preset == preset
        for one in stage_configs(config, tmp_path).values() if config.stages else [config]:
            validate(one)


OVERRIDES = [
    (
        ["distill.preset=soft"],
        "teacher has distill.preset='none'; students has distill.preset=('none', 'soft', 'spectral', 'soft+spectral')",
    ),
    (
        ["optimizer.learning_rate=0.01", "student.args.depth=5", "seed=7", "train.batch_size=16"],
        "teacher has student.args.depth=6; students has optimizer.learning_rate=0.003, seed=(0, 1, 2, 3, 4)",
    ),
    (["train.batch_size=16", "data.per_class=20"], ""),
]


@pytest.mark.parametrize(("changes", "words"), OVERRIDES)
def test_fields_that_a_stage_sets_itself_are_named(tmp_path, capsys, changes, words):
    """And what a stage's own objective reads is not reset with the objective of the command line."""
    argv = [f"--config={ROOT}/configs/deit_cait.py:embedded", f"--workdir={tmp_path}"]
    argv += [f"--config.{change}" for change in changes]
    config = main.parse(argv).config
    for one in stage_configs(config, tmp_path).values():
        validate(one)
    print_overridden(config, argv)
    said = f"jaxkd: stages have values of their own for fields of the command line: {words}. The config file sets them."
    assert capsys.readouterr().err == (f"{said}\n" if words else "")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("seed", "-1", "seed=-1 is out of range"),
        ("ema.decay", "1.0", "Give a number, at least 0 and below 1"),
        ("optimizer.b1", "1.5", "Give a number, at least 0 and below 1"),
        ("data.augment.scale", "(0.5,)", "is not a range"),
        ("student.args.depth", "0", "depth=0 is out of range"),
        ("student.args.drop_path_rate", "1.5", "drop_path_rate=1.5 is out of range"),
        ("student.args.num_heads", "(3, 3)", "num_heads=(3, 3) is out of range"),
        ("student.args.act_layer", "gelo", 'Did you mean "gelu"'),
        ("optimizer.learning_rate", "1e-6", "below schedule.min_lr"),
    ],
)
def test_a_value_out_of_range(complaint, images, tmp_path, field, value, words):
    assert words in complaint(supervised(images, tmp_path / "run", f"--config.{field}={value}"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--workdir=x"], "No --config was given"),
        (["--config=configs/deit_cate.py", "--workdir=x"], 'Did you mean "configs/deit_cait.py"'),
        (["--config=configs/deit_cait.py"], "No --workdir was given"),
        (["--config=configs/deit_cait.py", "--workdri=x"], 'Did you mean "workdir"'),
        (["--config=configs/deit_cait.py", "--workdir=x", "train"], '"train" is not an option'),
        (["--config=configs/deit_cait.py:embeded", "--workdir=x"], 'Did you mean "embedded"'),
        (
            ["--config=configs/deit_cait.py", "--workdir=x", "--config.train.epochs=ten"],
            "Give a value of type int",
        ),
        (["--config=configs/deit_cait.py", "--workdir=x"], "data.source is empty"),
        (["--config=configs/supervised.py:vit_tinny_patch16_224", "--workdir=x"], "data.source is empty"),
    ],
)
def test_a_mistyped_command(complaint, monkeypatch, argv, words):
    monkeypatch.chdir(ROOT)
    assert words in complaint(argv)
