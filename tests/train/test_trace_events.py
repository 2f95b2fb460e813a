"""Time per operation from traces of a GPU and a CPU that are written here."""

from __future__ import annotations

import gzip
import json

import pytest

from jaxkd.train import trace_events


def line(pid: int, tid: int, name: str) -> dict:
    return {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}


def work(pid: int, tid: int, name: str, start: float, microseconds: float, **args: str) -> dict:
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, "ts": start, "dur": microseconds, "args": args}


HLO = """
ENTRY %main {
  %fusion.1 = f32[4] fusion(%a), kind=kLoop, metadata={op_name="jit(step)/jvp(Net)/blocks_0/mlp/dot" stack_frame_id=3}
  %fusion.2 = f32[4] fusion(%b), kind=kLoop, metadata={op_name="jit(step)/jvp(Net)/blocks_11/mlp/dot"}
  ROOT %call.3 = f32[4] call(%c), metadata={op_name="jit(step)/loss/add"}
}
"""


def test_a_trace_of_a_gpu_counts_what_ran_on_its_streams_once():
    events = [
        line(1, 5, "Stream #5(Compute,MemcpyD2D)"),
        line(1, 9, "XLA Ops"),
        line(2, 7, "python"),
        work(1, 5, "gemm_kernel", 0, 300, hlo_op="fusion.1"),
        work(1, 5, "fusion_2", 400, 100, hlo_op="command_buffer_1"),  # of a CUDA graph: only its name is known
        work(1, 5, "MemcpyD2D", 499.5, 40),  # begins before the kernel has quite ended, but is no part of it
        work(1, 9, "fusion.1", 0, 300, hlo_op="fusion.1"),
        work(2, 7, "fit", 0, 5000),
    ]
    top = trace_events.top_operations(events, trace_events.source_names(HLO), steps=2)
    assert top["busy_ms_per_step"] == pytest.approx(0.22)
    first, second, third = top["operations"]
    assert first["operation"] == "fusion.1" and first["kernel"] == "gemm_kernel"
    assert first["ms_per_step"] == pytest.approx(0.15) and first["share"] == pytest.approx(300 / 440, abs=1e-4)
    assert second["where"] == "jit(step)/jvp(Net)/blocks_11/mlp/dot" and "kernel" not in second
    assert third["operation"] == "MemcpyD2D" and third["where"] == ""
    group, copies = top["groups"]
    assert group["where"] == "jvp(Net)/blocks_*/mlp/dot" and group["calls_per_step"] == 1.0
    assert group["ms_per_step"] == pytest.approx(0.2) and copies["where"] == "MemcpyD*D"


def test_a_trace_of_a_cpu_counts_nested_operations_once_and_the_first_ten(tmp_path):
    events = [line(1, 3, "tf_XLAPjRtCpuClient/1"), line(1, 4, "tf_XLAPjRtCpuClient/2")]
    events += [
        work(1, 3, "call.3", 0, 100, hlo_op="call.3"),
        work(1, 3, "fusion.1", 10, 60, hlo_op="fusion.1"),
        work(1, 3, "fusion.2", 70, 30, hlo_op="fusion.2"),
        work(1, 4, "fusion.1", 0, 60, hlo_op="fusion.1"),
        work(1, 4, "ThreadpoolListener::Record", 0, 900),
    ]
    events += [work(1, 4, f"dot.{i}", 100 + 10 * i, 1, hlo_op=f"dot.{i}") for i in range(20)]
    folder = tmp_path / "plugins" / "profile" / "today"
    folder.mkdir(parents=True)
    with gzip.open(folder / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    top = trace_events.top_operations(trace_events.read_events(tmp_path), {}, steps=1)
    assert [row["operation"] for row in top["operations"][:3]] == ["fusion.1", "fusion.2", "call.3"]
    assert [row["ms_per_step"] for row in top["operations"][:3]] == [0.12, 0.03, 0.01]
    assert len(top["operations"]) == 10 and top["busy_ms_per_step"] == pytest.approx(0.18)
    assert top["groups"][0]["where"] == "fusion.*" and top["groups"][0]["calls_per_step"] == 3.0
    with pytest.raises(FileNotFoundError, match="trace"):
        trace_events.read_events(tmp_path / "nowhere")
