"""Width of the text that commands print. Imports nothing of jaxkd."""

from __future__ import annotations

import re
import shutil
import textwrap

LEAST, MOST = 40, 100  # columns


def text_width() -> int:
    """Columns for text: those of the terminal or of the variable COLUMNS, 40 to 100; without either, 100."""
    return min(MOST, max(LEAST, shutil.get_terminal_size((MOST, 24)).columns))


def fit(text: str) -> str:
    """`text` with its long lines broken at `text_width()`; commands to copy stay in one line.

    A line of two columns, which two spaces separate, goes on below the second column; another one below its beginning.
    """
    width, lines = text_width(), []
    for line in text.split("\n"):
        if len(line) <= width or line.lstrip().startswith(("jaxkd ", "python ")):
            lines.append(line)
            continue
        second = re.match(r"\s*\S+(?: \S+)*? {2,}(?=\S)", line)
        indent = second.end() if second else len(line) - len(line.lstrip())
        options = {"break_long_words": False, "break_on_hyphens": False}
        lines += textwrap.wrap(line, width, subsequent_indent=" " * min(indent, width // 2), **options)
    return "\n".join(lines)
