"""The study command: options."""

from __future__ import annotations

from collections import Counter

import pytest

from jaxkd import study
from jaxkd.errors import ConfigError


def test_an_unknown_option_is_refused_with_those_of_this_command():
    with pytest.raises(ConfigError, match=r'"--bugdet-minutes=3" is not an option.*"--budget-minutes".*--tflops'):
        study.parse(["--config=configs/studies/encoding_mismatch.py", "--workdir=runs/x", "--bugdet-minutes=3"])


def test_options_and_fields_are_told_apart():
    options, config, workdir, _ = study.parse(
        [
            "--config=configs/studies/encoding_mismatch.py:scale=tiny",
            "--workdir=runs/x",
            "--budget-minutes=3",
            "--config.data.source=/data",
        ]
    )
    assert (options.budget_minutes, config.data.source, workdir) == (3, "/data", "runs/x")


@pytest.mark.parametrize("scale", ["", "scale=gpu,", "scale=cpu,"])
def test_the_study_of_encoding_mismatch_tests_each_of_its_questions(scale):
    """A comparison whose runs are not declared would be left out in silence."""
    words = f"--config=encoding_mismatch:{scale}parts=first+a+b+c+e"
    config = study.parse([words, "--workdir=runs/x"])[1]
    found = Counter(comparison["family"] for comparison in config.study.comparisons)
    labels = {f"labels {share} %": 14 for share in (10, 20, 50)}
    whole = {
        "late": 5,
        "spectral": 3,
        "logits": 1,
        "wide": 12,
        "layers": 9,
        "projectors": 6,
        "uniform": 6,
        "readout": 2,
    }
    assert found == {**whole, **labels, "students": 8}
    members = {group["name"]: [member["name"] for member in group["members"]] for group in config.study.groups}
    assert {len(members[f"{name}_10"]) - len(members[name]) for name in ("deit", "layers")} == {0}
    weights = {
        m["distill.feature_weight"] for g in config.study.groups for m in g["members"] if "mse_last" in m["name"]
    }
    assert sorted(weights) == pytest.approx({"scale=cpu,": (1 / 15, 0.1, 2 / 15)}.get(scale, (0.08, 0.1, 0.16)))
