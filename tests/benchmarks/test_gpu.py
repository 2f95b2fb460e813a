"""benchmarks/gpu.sh: how parts end, what is kept of them and printed. Nothing runs on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_a_part_that_succeeds_is_its_object():
    import gpu_part

    part = gpu_part.run_part(python("print('a log line'); print('{\\n \"a\": 1\\n}')"), 60)
    assert part["status"] == "ok" and part["result"] == {"a": 1} and "error" not in part


@pytest.mark.parametrize(
    ("program", "result", "words"),
    [
        ("raise ValueError('no such thing')", None, "no such thing"),
        ("print('{\"a\": 1}'); raise SystemExit('differs')", {"a": 1}, "differs"),
        ("print('no object')", None, "nothing on stderr"),
        ("import os; os.kill(os.getpid(), 11)", None, "nothing on stderr"),
    ],
)
def test_a_part_that_fails_keeps_its_error_and_what_it_printed(program, result, words):
    import gpu_part

    part = gpu_part.run_part(python(program), 60)
    assert part["status"] == "failed" and part.get("result") == result and words in part["error"][-1]


@pytest.mark.slow
def test_a_part_that_takes_too_long_ends_with_its_children_and_leaves_its_partial_result(tmp_path):
    import gpu_part

    file, child = tmp_path / "partial.json", tmp_path / "child"
    program = (
        "import pathlib, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"pathlib.Path({str(file)!r}).write_text('{{\"step\": 2}}');"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"pathlib.Path({str(child)!r}).write_text(str(child.pid)); time.sleep(600)"
    )
    part = gpu_part.run_part(python(program), 3, str(file))
    assert part["status"] == "timed out" and part["result"] == {"step": 2} and part["seconds"] < 30
    for _ in range(100):
        state = Path("/proc", child.read_text(), "stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child still runs")


def test_a_part_is_skipped_where_too_little_time_is_left(tmp_path):
    import gpu_part

    out = tmp_path / "trace.json"
    argv = ["--name=trace", f"--out={out}", f"--deadline={time.time() + 20}", "--least=30", "--", "false"]
    assert gpu_part.main(argv) == 0
    part = json.loads(out.read_text())
    assert part["status"] == "skipped" and "30 s needed" in part["error"][0] and part["part"] == "trace"


def test_a_wrong_option_runs_nothing(tmp_path):
    env = os.environ | {"OUT": str(tmp_path / "out"), "PYTHON": "false"}
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--tinny"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "--tinny" in done.stderr and not list((tmp_path / "out").iterdir())


# --- the summary


def program(ms: float) -> dict:
    return {"ms": {"median": ms}, "images_per_second": 256e3 / ms, "share_of_data_sheet": 0.25, "memory_mb": None}


PARTS = {
    "trace": {
        "part": "trace",
        "started": "2026-01-02T03:10:00Z",
        "status": "ok",
        "result": {
            "steps": 3,
            "ms_per_step": 80.0,
            "busy_ms_per_step": 75.0,
            "groups": [{"where": "blocks_*/attn", "ms_per_step": 7.5, "share": 0.1, "calls_per_step": 24.0}],
        },
    },
    "attention": {
        "part": "attention",
        "started": "2026-01-02T03:12:00Z",
        "status": "timed out",
        "error": ["deit, forward_backward ..."],
        "result": {
            "dtype": "bfloat16",
            "batch_size": 256,
            "cases": {
                "deit": {
                    "forward": {
                        "plain": {
                            "ms": {"median": 2.0},
                            "to_plain": {"median": 1.0},
                            "temporary_mb": 9.5,
                            "error": 0.01,
                        },
                        "cudnn": {"failed": "cuDNN is not detected."},
                    }
                }
            },
        },
    },
    "step_time": {
        "part": "step_time",
        "started": "2026-01-02T03:05:00Z",
        "status": "failed",
        "error": ["Traceback", "RuntimeError: no compiler"],
        "result": {
            "device": "1 x NVIDIA H100 80GB HBM3 (gpu)",
            "student": "deit",
            "teacher": "cait",
            "dtype": "bfloat16",
            "batch_size": 256,
            "programs": {"train_step": program(80.0) | {"memory_mb": {"allocator_peak": 9000.5}}},
            "peer": {
                "forms": {
                    "eager": {
                        "programs": {"train_step": program(160.0)},
                        "ratio": {"train_step": {"median": 2.0}},
                        "memory_mb": 12000.04,
                    },
                    "compile": {"error": "no compiler\nlong story"},
                }
            },
        },
    },
}


def test_parts_become_one_file_with_device_date_and_status(tmp_path, capsys):
    import merge_results

    for name, part in PARTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    (tmp_path / "other.json").write_text("[]")
    assert merge_results.main([str(tmp_path)]) == 0
    merged = json.loads((tmp_path / "results.json").read_text())
    assert merged["device"] == "NVIDIA H100 80GB HBM3" and merged["date"] == "2026-01-02"
    assert merged["parts"] == PARTS and list(merged["parts"]) == ["step_time", "trace", "attention"]
    assert merged["status"]["goldens"] == "not run" and merged["status"]["step_time"] == "failed"
    assert merge_results.file_name(merged) == "nvidia-h100-80gb-hbm3-2026-01-02.json"
    assert merge_results.main([str(tmp_path)]) == 0  # results.json is no part of itself
    assert merge_results.main([str(tmp_path / "nowhere")]) == 2
    assert "Give the folder" in capsys.readouterr().err


def test_results_are_kept_under_their_device_and_date(tmp_path, monkeypatch, capsys):
    import merge_results

    monkeypatch.setattr(merge_results, "KEPT", tmp_path / "results")
    (tmp_path / "trace.json").write_text(json.dumps(PARTS["trace"]))
    assert merge_results.main([str(tmp_path), "--keep"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "results" / "unknown-2026-01-02.json")
    assert not (tmp_path / "results.json").exists()


def test_the_table_shows_numbers_errors_and_missing_parts(tmp_path, capsys):
    import merge_results
    import results_table

    file = tmp_path / "results.json"
    file.write_text(json.dumps(merge_results.merge(PARTS)))
    assert results_table.main([str(file)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "| whole step with AdamW | jaxkd | 80.0 | 3200 | 0.250 |  | 9000.5 |" in printed
    assert "| whole step with AdamW | PyTorch, eager | 160.0 | 1600 | 0.250 | 2.00 | 12000.0 |" in printed
    assert "PyTorch, compile, failed: no compiler" in printed
    assert "(step_time: failed: RuntimeError: no compiler)" in printed
    assert "| `blocks_*/attn` | 7.5 | 10.0 % | 24.0 |" in printed
    assert "| deit | forward | plain | 2.0 | 1.00 | 9.5 | 1.0e-02 |" in printed
    assert "| deit | forward | cudnn |  |  |  | cuDNN is not detected. |" in printed
    assert "(goldens: not run)" in printed and "(superres: not run)" in printed


def test_a_golden_comparison_is_by_the_tolerances():
    import gpu_goldens

    near = gpu_goldens.compare("x", [1.0, 2.00001], [1.0, 2.0], 1e-5, 0.0)
    assert near["passed"] and near["max_abs"] == pytest.approx(1e-5) and near["max_rel"] == pytest.approx(5e-6)
    assert not gpu_goldens.compare("x", [1.0, 2.00001], [1.0, 2.0], 1e-6, 0.0)["passed"]
    assert not gpu_goldens.compare("x", [float("nan")], [1.0], 1.0, 1.0)["passed"]
    assert "shape" in gpu_goldens.compare("x", [1.0], [1.0, 2.0], 1.0, 1.0)["error"]

    def broken():
        yield "fine", 1.0, 1.0, 0.0, 0.0
        raise RuntimeError("no kernel image")

    case = gpu_goldens.run_case("broken", broken)
    assert not case["passed"] and case["checks"] == 1 and "no kernel image" in case["error"]


@pytest.mark.benchmarks
def test_every_form_of_attention_computes_the_same_or_says_why_it_does_not_run(tmp_path, capsys):
    import attention_forms

    out = tmp_path / "attention.json"
    argv = ["--tiny", "--batch-size=1", "--repeats=1", f"--out={out}"]
    assert attention_forms.main(argv) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == result and list(result["cases"]) == ["deit", "swin"]
    for name, case in result["cases"].items():
        for direction in ("forward", "forward_backward"):
            found = case[direction]
            assert list(found) == ["plain", "again", "xla", "cudnn", "triton"]
            ran = {form for form, values in found.items() if "failed" not in values}
            assert ran >= {"plain", "again", "xla"} and ("triton" in ran) == (name == "deit")
            assert all(found[form]["error"] < 1e-5 and found[form]["ms"]["median"] > 0 for form in ran)
