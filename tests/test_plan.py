"""The plan command: its numbers for a step that can be counted by hand, and its refusals."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from jaxkd import plan
from jaxkd.errors import JaxkdError
from jaxkd.experiment.plan import CHIPS, print_plan, topology

ROOT = Path(__file__).resolve().parent.parent
BATCH, WIDTH, DEPTH, TOKENS, CLASSES = 8, 24, 2, 17, 10
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 3, "num_classes": CLASSES}
SIZE = [f"--config.student.args.{name}={value}" for name, value in SMALL.items()]
CONFIG = [
    "--config=configs/supervised.py",
    f"--config.train.batch_size={BATCH}",
    *SIZE,
    "--config.optimizer.reference_batch=0",
]
KEYS = ("flops_per_image", "bytes_per_image", "peak_bytes", "collectives", "roofline_ms", "compile_seconds")
KEYS += ("largest_batch",)


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def planned(capsys, *argv):
    assert plan.main([*CONFIG, "--json", *argv]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_plan_counts_a_step_exactly(capsys):
    found = planned(capsys, "--topology=cpu:1")
    assert set(KEYS) <= set(found)
    # Multiply-adds of one image: patches, then per block qkv and proj (4 W^2), two layers of the MLP (8 W^2) and both
    # products of the attention, then the head; the backward pass has twice as many, but none for the pixels.
    patches = 16 * 48 * WIDTH
    blocks = DEPTH * (12 * TOKENS * WIDTH**2 + 2 * TOKENS**2 * WIDTH)
    expected = 2 * (2 * patches + 3 * (blocks + WIDTH * CLASSES))
    assert found["flops_per_image"] == pytest.approx(expected, rel=0.01)
    memory = found["memory"]
    parameters = found["parameters"] * 4
    assert memory["parameters"] == memory["ema"] == parameters and memory["teacher"] == 0
    assert memory["optimizer"] == pytest.approx(2 * parameters, abs=16)
    assert memory["batch"] == BATCH * (16 * 16 * 3 + 4 + 1)
    assert sum(memory[k] for k in memory if k not in ("peak", "room")) == memory["peak"] == found["peak_bytes"]
    assert found["collectives"] == [] and found["roofline_ms"] is None and found["input"] is None
    assert "only a hint" in found["notes"][0] and not found["exact"]


def test_a_gpu_has_a_roofline_and_needs_host_cores(capsys):
    found = planned(capsys, "--topology=gpu:h100:1", "--host-cores=4")
    times = found["roofline_ms"]
    assert times["compute"] == pytest.approx(1e3 * BATCH * found["flops_per_image"] / 989e12)
    assert times["memory"] == pytest.approx(1e3 * BATCH * found["hbm_bytes_per_image"] / 3.35e12)
    assert times["binds"] == "memory" and times["interconnect"] == 0
    assert found["images_per_second_bound"] == pytest.approx(1e3 * BATCH / times["memory"])
    given = found["input"]
    assert given["cores"] == 4 and given["cores_needed"] > 4 and not given["enough"]
    assert given["fed_images_per_second"] == pytest.approx(4 / 4.3e-3)
    assert any("hosts cannot feed this" in note for note in found["notes"])


def test_accumulation_counts_every_micro_batch(capsys):
    whole, parts = (planned(capsys, "--topology=cpu:1", *more) for more in ([], ["--config.optimizer.accumulate=4"]))
    assert parts["flops_per_image"] == pytest.approx(whole["flops_per_image"], rel=0.01)
    assert parts["bytes_per_image"] > 0.7 * whole["bytes_per_image"]


def test_the_text_names_every_part(capsys):
    assert plan.main([*CONFIG, "--topology=gpu:a100:1"]) == 0
    done = capsys.readouterr()
    for words in ("optimiser", "EMA", "peak", "(binds)", "upper bound", "collectives", "VisionTransformer/blocks_*"):
        assert words in done.out, words
    assert "compiling the step at batch 8" in done.err and "Traceback" not in done.err


def test_the_last_stage_is_planned_unless_another_is_named(capsys):
    argv = ["--config=configs/swin_swin.py:embedded", "--config.train.batch_size=8", "--topology=cpu:1", "--json"]
    assert plan.main([*argv, "--stage=student_alone"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["student"], found["teacher"]) == ("swin_tiny_patch4_window7_224", None)


def test_patches_of_super_resolution(capsys):
    argv = ["--config=configs/mdbn_x4.py", "--config.train.batch_size=2", "--config.data.patches.size=32"]
    argv += ["--config.student.args.num_feat=8", "--config.student.args.num_block=1", "--topology=cpu:1", "--json"]
    assert plan.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["batch"] == 2 * (32 * 32 * 3 + 8 * 8 * 3 + 1) and found["flops_per_image"] > 0
    text = io.StringIO()
    print_plan(found, Console(file=text, width=140))
    assert "restoration of mdbn_x4, float32, batch 2" in text.getvalue()


REFUSALS = [
    (["--topology=w9:2"], '--topology="w9:2" is not known. Give a TPU (v5e'),
    (["--topology=v5e"], '--topology="v5e" has no shape of 2 numbers'),
    (
        ["--topology=v5e:32x16"],
        "has 512 chips, but a slice of TPU v5e has 256 at most. Give a smaller shape; --slices=2",
    ),
    (["--topology=v4:4x4"], "has no shape of 3 numbers, which a TPU v4 has. Write for example --topology=v4:2x2x4"),
    (["--topology=gpu:h1000:8"], '--topology="gpu:h1000:8" is not known. Did you mean "gpu:h100:8"'),
    (["--topology=h100:8"], "is not known"),
    (["--topology=gpu:v5e:8"], "is not known"),
    (["--topology=cpu:0"], "does not say how many from 1 to 1024"),
    (["--topology=cpu:1", "--slices=2"], "Only TPUs have slices; leave it out"),
    (["--topology=cpu:1", "--slices=0"], "--slices=0 is out of range"),
    (["--topology=cpu:1", "--host-cores=-1"], "--host-cores=-1 is out of range"),
    (["--topology=cpu:1", "--search"], "whose memory is not known. Name a chip, such as gpu:h100:8"),
    (["--topology=cpu:1", "--stage=a"], "the config has no stages. Leave it out"),
    (["--topology=cpu:1", "--serch"], '"--serch" is not an option. Did you mean "--search"'),
    (["--topology=cpu:1", "--config.mesh.model=2"], "mesh.model=2 needs 2 devices, but there are 1 (cpu)"),
    (["--topology=cpu:1", "--config.optimizer.accumulate=3"], "train.batch_size=8 does not divide over 1 devices x 3"),
    (["--topology=cpu:512"], "needs 512 simulated devices, but JAX runs with"),
    ([], "required: --topology"),
]


@pytest.mark.parametrize(("argv", "words"), REFUSALS, ids=[" ".join(argv) or "none" for argv, _ in REFUSALS])
def test_refusals_say_what_to_do_and_come_before_compiling(argv, words, complaint_of):
    text = complaint_of(plan.main, [*CONFIG, *argv])
    assert words in text and "compiling" not in text


def test_a_missing_compiler_is_named_with_its_extra(complaint_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    text = complaint_of(plan.main, [*CONFIG, "--topology=v5e:2x2"])
    assert "pip install 'jaxkd[tpu]'; no TPU is needed" in text


def test_a_step_that_is_too_large_is_printed_and_then_refused(capsys):
    argv = [*CONFIG, "--topology=gpu:l4:1", "--json", "--config.train.batch_size=2000000"]
    with pytest.raises(SystemExit) as caught:
        plan.main(argv)
    done = capsys.readouterr()
    found = json.loads(done.out)
    assert caught.value.code == 2 and not found["fits"] and found["peak_bytes"] > found["memory"]["room"]
    assert "on each NVIDIA L4, which has 22.35 GiB. Use a smaller train.batch_size (--search finds" in done.err
    assert "mesh." not in done.err  # a mesh of one device


@pytest.mark.slow
def test_the_search_ends_at_a_batch_that_fits(capsys):
    found = planned(capsys, "--topology=gpu:l4:1", "--search")
    tried = {row["batch_size"]: row["peak_bytes"] for row in found["search"]}
    assert 0.88 <= tried[found["largest_batch"]] / found["memory"]["room"] <= 1 and len(tried) <= 4
    assert found["largest_batch"] < found["memory_full_at"] < 1.2 * found["largest_batch"]


def run(*argv):
    """The command in a process of its own, as JAX has started here with one device."""
    given = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, "-m", "jaxkd.plan", *CONFIG, "--json", *argv]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout or "null"), done.stderr


@pytest.mark.slow
def test_eight_simulated_devices_sum_the_gradients():
    code, found, errors = run("--topology=cpu:8", "--config.mesh.model=2")
    assert code == 0, errors
    assert found["mesh"] == {"data": 4, "fsdp": 1, "model": 2} and found["chips"] == 8
    reduced = {row["kind"]: row["bytes"] for row in found["collectives"]}["all-reduce"]
    assert reduced >= 0.5 * found["memory"]["parameters"]


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the compiler of TPUs, is not installed (extra `tpu`)"
)


@pytest.mark.slow
@needs_libtpu
def test_a_plan_of_a_tpu_is_that_of_its_own_program():
    code, found, errors = run("--topology=v5e:2x2", "--slices=2", "--config.precision.compute=bfloat16")
    assert code == 0, errors
    assert found["exact"] and (found["chips"], found["slices"], found["hosts"]) == (8, 2, 2)
    assert {"all-reduce", "send"} <= {row["kind"] for row in found["collectives"]}
    assert found["flops_per_image"] >= found["matrix_flops_per_image"]  # a TPU's program also counts the rest
    assert found["memory"]["room"] == int(15.75 * 2**30) and found["roofline_ms"]["binds"]


@pytest.mark.slow
@needs_libtpu
def test_weights_that_are_split_over_slices_are_warned_of():
    size = ["--topology=v5e:2x2", "--slices=2"]
    code, found, errors = run(*size, "--config.mesh.fsdp=8")
    assert code == 0, errors
    warnings = [note for note in found["notes"] if "mesh.fsdp=8 spreads the weights over 2 slices of 4 chips" in note]
    assert len(warnings) == 1 and "Use mesh.fsdp=4 with mesh.data=-1" in warnings[0]


@pytest.mark.slow
@needs_libtpu
def test_a_slice_that_libtpu_does_not_have_is_refused():
    code, _, errors = run("--topology=v5e:3x5")
    assert code == 2 and "libtpu has no slice v5e:3x5" in errors and "Traceback" not in errors


KERNEL = """
import sys
from jaxkd.experiment.plan import topology

names = sys.argv[1:]
topology.prepare(topology.parse(names[0]))

import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from jaxkd.models.talking_heads import fused

for name in names:
    place = SingleDeviceSharding(topology.devices(topology.parse(name))[0])
    shapes = ((2, 196, 3 * 384), jnp.bfloat16), *[(shape, jnp.float32) for shape in ((8, 8), (8,))]
    qkv, kernel, bias = (jax.ShapeDtypeStruct(*shape, sharding=place) for shape in shapes)
    compiled = jax.jit(fused).lower(qkv, (kernel, bias), (kernel, bias)).compile()
    print(name, "tpu_custom_call" in compiled.as_text())
"""


@pytest.mark.slow
@needs_libtpu
def test_the_kernel_of_talking_heads_compiles_for_every_tpu_of_the_table():
    names = [next(n for n in topology.EXAMPLES["tpu"] if n.startswith(c.name)) for c in CHIPS.values() if c.slice_chips]
    assert len(names) == 4
    given = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run([sys.executable, "-c", KERNEL, *names], cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{name} True" for name in names], done.stderr


def test_options_and_fields_are_told_apart():
    options, config = plan.parse([*CONFIG, "--topology=v5e:4x4", "--search", "--config.seed=3"])
    assert (options.topology, options.search, options.json, config.seed) == ("v5e:4x4", True, False, 3)
    with pytest.raises(JaxkdError, match=r'"--workdir=a" is not an option'):
        plan.parse([*CONFIG, "--topology=v5e:4x4", "--workdir=a"])
