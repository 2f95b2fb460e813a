"""`--profile`: the trace, the table, what bounds an operation, and that training is what it was without."""

from __future__ import annotations

import json
import re

import pytest
from pictures import noisy_classes

from jaxkd import main
from jaxkd.experiment.plan.chips import CHIPS, chip_of
from jaxkd.experiment.profile import rows

CONFIG = "--config=configs/supervised.py"
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return noisy_classes(tmp_path_factory.mktemp("data") / "images", train=8, val=2)


def argv(source, workdir, *more: str) -> list[str]:
    fields = {"data.source": source, "train.batch_size": 8, "train.epochs": 4, "schedule.warmup_epochs": 1}
    fields |= {"optimizer.reference_batch": 0, "data.workers": 0, "log.tensorboard": False, "log.every_steps": 1}
    fields |= {f"student.args.{name}": value for name, value in SMALL.items()}
    fields |= {"eval.every_steps": 5}
    return [CONFIG, f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items()), *more]


def losses(workdir) -> list[tuple]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["kind"], row["step"], row["loss"]) for row in lines if "loss" in row]


@pytest.mark.slow
def test_a_profiled_run_prints_its_operations_and_trains_to_the_same_bits(images, tmp_path, capsys):
    assert main.main(argv(images, tmp_path / "plain")) == 0
    capsys.readouterr()
    assert main.main(argv(images, tmp_path / "run", "--profile=2")) == 0
    said = capsys.readouterr().out
    assert "operations of 2 steps of" in said and "/blocks_*/" in said and ", backward" in said
    assert len(re.findall(r"\d+\.\d %", said)) == 10 and "unknown chip" in said
    file = re.search(r"Trace: (\S+\.trace\.json\.gz); open it in ui.perfetto.dev", said)[1]
    assert file.startswith(f"{tmp_path}/run/profile/")
    assert losses(tmp_path / "run") == losses(tmp_path / "plain") and len(losses(tmp_path / "run")) >= 8


@pytest.mark.slow
def test_a_population_is_profiled_and_a_trace_that_cannot_be_written_ends_no_run(images, tmp_path, capsys):
    members = "--config.population={'seed': (0, 1)}"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").write_text("in the way")
    more = (members, "--profile=2")
    assert main.main(argv(images, tmp_path / "run", *more)) == 0
    said = capsys.readouterr().out
    assert "The steps could not be profiled" in said and "Most expensive" not in said
    assert main.main(argv(images, tmp_path / "other", *more)) == 0
    assert "/blocks_*/" in capsys.readouterr().out


def test_numbers_of_steps_that_cannot_be_traced(images, tmp_path, complaint_of):
    for steps in ("0", "-1", "51"):
        text = complaint_of(main.main, argv(images, tmp_path / "run", f"--profile={steps}"))
        assert f"--profile={steps} is out of range" in text and "at least 1 and at most 50" in text
    text = complaint_of(main.main, argv(images, tmp_path / "run", "--profile=6"))
    assert "--profile=6, and the run has 8 steps left, of which the first 3 are not traced. Give at most 5." in text


HLO = """
HloModule jit_step_fn

%fused (p0: bf16[512,1024], p1: bf16[1024,2048]) -> bf16[512,2048] {
  %p0 = bf16[512,1024]{1,0} parameter(0)
  %p1 = bf16[1024,2048]{1,0} parameter(1)
  ROOT %dot.9 = bf16[512,2048]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: bf16[512,1024], b: bf16[1024,2048]) -> bf16[512,2048] {
  %a = bf16[512,1024]{1,0} parameter(0)
  %b = bf16[1024,2048]{1,0} parameter(1)
  %gemm_fusion.1 = bf16[512,2048]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused, metadata={op_name="jit(step)/jvp(Net)/blocks_0/mlp/dot"}
  %gemm_fusion.2 = bf16[512,2048]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused, metadata={op_name="jit(step)/jvp(Net)/blocks_1/mlp/dot"}
  ROOT %add.3 = bf16[512,2048]{1,0} add(%gemm_fusion.1, %gemm_fusion.2), metadata={op_name="jit(step)/add"}
}
"""  # noqa: E501


def event(name: str, start: float, microseconds: float, module: str = "jit_step_fn") -> dict:
    args = {"hlo_op": name, "hlo_module": module}
    return {"ph": "X", "pid": 1, "tid": 1, "name": name, "ts": start, "dur": microseconds, "args": args}


def test_operations_of_equal_modules_are_one_row_with_what_bounds_them():
    events = [event("gemm_fusion.1", 0, 30), event("gemm_fusion.2", 40, 50), event("add.3", 100, 20)]
    events.append(event("add.3", 200, 500, module="jit_evaluate"))  # another program
    # A product is 2.15e9 FLOP, 2.17 us of an H100 and 10.9 us of a v5e, and 7.34 MB, 2.19 us and 8.96 us.
    first, second = rows(events, HLO, steps=2, chip=CHIPS["h100"])
    assert (first.operation, first.module, first.calls) == ("gemm_fusion", "Net/blocks_*/mlp", 1.0)
    assert first.milliseconds == pytest.approx(0.04) and first.share == pytest.approx(0.8)
    assert (second.operation, second.module, second.bound) == ("add", "step: add", "memory")
    assert first.bound == "memory"
    assert rows(events, HLO, steps=2, chip=CHIPS["v5e"])[0].bound == "compute"
    assert [row.bound for row in rows(events, HLO, steps=2, chip=None)] == ["", ""]


def test_chips_are_found_by_the_name_that_jax_gives_them():
    names = {"NVIDIA H100 80GB HBM3": "h100", "TPU v5 lite": "v5e", "TPU v4": "v4", "TPU v5p": "v5p"}
    assert {kind: chip_of(kind).name for kind in names} == names
    assert chip_of("NVIDIA RTX 1") is chip_of("cpu") is None
