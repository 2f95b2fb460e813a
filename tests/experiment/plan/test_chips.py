"""The table of chips."""

from __future__ import annotations

import pytest

from jaxkd.experiment.plan.chips import CHIPS, bf16_peak


def test_peaks_are_those_of_the_data_sheets():
    assert bf16_peak("NVIDIA H100 80GB HBM3") == bf16_peak("NVIDIA H200") == 989e12
    assert bf16_peak("NVIDIA H100 PCIe") == 756e12
    assert bf16_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert bf16_peak("NVIDIA L4") == 121e12 and bf16_peak("NVIDIA L40S") == 362e12
    assert bf16_peak("cpu") is None


@pytest.mark.parametrize("name", [name for name in CHIPS if name != "cpu"])
def test_figures_are_of_the_right_size(name):
    chip = CHIPS[name]
    assert 100e12 <= chip.flops < 1e15 and 3e11 <= chip.bandwidth < 5e12 and 15e9 <= chip.room < 150e9
    assert 30e9 <= chip.link < chip.bandwidth and (chip.host_cores or chip.platform == "gpu")
