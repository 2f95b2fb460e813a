"""Resident memory of this process on Linux, its peak counted from a moment of one's choice."""

from __future__ import annotations

from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _megabytes(field: str) -> float:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def restart_peak() -> float:
    """Forgets earlier peaks, such as that of loading the weights; returns the present memory in MB."""
    CLEAR.write_text("5")
    return _megabytes("VmRSS:")


def peak_megabytes() -> float:
    """Peak in MB since `restart_peak`."""
    return _megabytes("VmHWM:")
