"""The final table on terminals of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from jaxkd.experiment.comparison import _table as table_of


def shown(width: int, encoding: str = "utf-8") -> str:
    """The table of two students with long names that begin alike."""
    result = {
        "student": "deit_tiny_patch16_224",
        "parameters": 5_717_416,
        "val_images": 359,
        "best_top1": 91.23,
        "seconds": 12345.6,
        "metrics": {"top1": 90.25, "ema_top1": 89.5, "loss": 0.4321},
    }
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    Console(file=file, width=width).print(table_of({"student_alone": result, "student_distilled": result}))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def test_a_wide_terminal_gets_everything():
    text = shown(140)
    assert "5,717,416" in text and "left out" not in text
    assert all(name in text for name in ("network", "right of 359", "best", "EMA top-1", "loss", "seconds"))


@pytest.mark.parametrize("width", [80, 60, 36])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_narrow_one_keeps_the_names_and_the_scores_and_says_what_it_left_out(width, encoding):
    text = shown(width, encoding)
    assert "student_alone" in text and "student_distilled" in text and text.count("90.25") == 2
    assert "deit_tiny" not in text and "Columns left out to fit the terminal: network" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= width
    assert ("EMA" in text.split("Columns left out")[0]) == (width >= 60)
