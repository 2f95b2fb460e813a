"""Peak arithmetic rates of GPUs from their data sheets."""

from __future__ import annotations

# bf16 on tensor cores, dense (without sparsity), in FLOP/s. Sources: the data sheets "NVIDIA H100 Tensor Core GPU" (SXM
# and PCIe), "NVIDIA H200 Tensor Core GPU", "NVIDIA A100 Tensor Core GPU", "NVIDIA L4", "NVIDIA L40S" and "NVIDIA A10";
# those that print the rate with sparsity are halved. The first entry whose words are all in the device's name counts.
BF16_PEAKS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("H200",), 989e12),
    (("H100", "PCIe"), 756e12),
    (("H100", "NVL"), 835e12),
    (("H100",), 989e12),
    (("A100",), 312e12),
    (("L40S",), 362e12),
    (("L4",), 121e12),
    (("A10",), 125e12),
)


def bf16_peak(device_kind: str) -> float | None:
    """FLOP/s of a device such as "NVIDIA H100 80GB HBM3", or None where it is not in the table."""
    name = device_kind.replace("-", " ").split()
    return next((rate for words, rate in BF16_PEAKS if set(words) <= set(name)), None)
