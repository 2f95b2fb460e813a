"""The picture of a comparison: accuracy and loss of several runs over their epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

STYLES = (("#1f3b73", "-"), ("#c44536", "--"), ("#2a8c55", "-."), ("#8b5fbf", ":"))


def draw_curves(runs: dict[str, list[dict[str, Any]]], path: Path, *, caption: str = "") -> None:
    """Writes a PNG with the held-out top-1 and loss of each run against its epochs.

    Args:
      runs: name -> lines of evaluation, as `train.read_metrics(workdir, "eval")` returns them.
      path: of the PNG.
      caption: printed below.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (name, rows), (colour, dash) in zip(runs.items(), STYLES * len(runs), strict=False):
        rows = [r for r in rows if isinstance(r.get("loss"), int | float)]
        epochs = [r["epoch"] for r in rows]
        last = f"{name.replace('_', ' ')} ({rows[-1]['top1']:.1f} %)" if rows else name
        axes[0].plot(epochs, [r["top1"] for r in rows], dash, color=colour, label=last, linewidth=1.8)
        axes[1].plot(epochs, [r["loss"] for r in rows], dash, color=colour, label=last, linewidth=1.8)
    tops = sorted(r["top1"] for rows in runs.values() for r in rows)
    if tops:  # the first epochs would flatten what matters
        axes[0].set_ylim(max(0.0, tops[len(tops) // 4] - 8), 100.5)
    axes[0].set(xlabel="epoch", ylabel="top-1 on held-out images (%)", title="Accuracy")
    axes[1].set(xlabel="epoch", ylabel="cross-entropy on held-out images (nats)", title="Loss", yscale="log")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(loc="lower right", frameon=False)
    if caption:
        figure.supxlabel(caption, fontsize=8, color="#555555")
    figure.savefig(path, dpi=130)
    plt.close(figure)
