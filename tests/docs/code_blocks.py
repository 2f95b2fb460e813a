"""Fenced code blocks of the documentation: collects them, and runs the Python blocks of pages in one process.

    python tests/docs/code_blocks.py docs/howto/loop.md [--slow]

A page is one namespace, run in order in a folder of its own. `<!-- not run: reason -->` or `<!-- slow -->` on the line
before a block leaves it out of the usual run.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
import types
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"<!-- (?:slow|not run: \S.*) -->")
FENCE = re.compile(r"^( *)```(\w*)$")


class Block(NamedTuple):
    line: int  # of its first line of code, from 1
    language: str
    code: str
    mark: str  # "", "slow" or "not run: reason"


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page.

    Raises:
      ValueError: a fence is not closed, or a mark is misspelt.
    """
    found, lines, i = [], text.splitlines(), 0
    while i < len(lines):
        start = FENCE.match(lines[i])
        if start is None:
            i += 1
            continue
        end = next((k for k in range(i + 1, len(lines)) if lines[k] == f"{start[1]}```"), None)
        if end is None:
            raise ValueError(f"the block in line {i + 1} is not closed")
        before = lines[i - 1].strip() if i else ""
        if before.startswith("<!--") and not MARK.fullmatch(before):
            raise ValueError(f'line {i}: "{before}" is neither <!-- slow --> nor <!-- not run: reason -->')
        mark = before.removeprefix("<!-- ").removesuffix(" -->") if MARK.fullmatch(before) else ""
        code = "\n".join(line.removeprefix(start[1]) for line in lines[i + 1 : end])
        found.append(Block(i + 2, start[2], code, mark))
        i = end + 1
    return found


def run_page(path: Path, marks: tuple[str, ...]) -> str:
    """Runs the Python blocks of a page whose mark is in `marks`; returns a traceback, or "" where all of them ended."""
    page = types.ModuleType("page")
    sys.modules["page"] = page  # flax looks up the module of a class
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for block in blocks(path.read_text()):
                if block.language == "python" and block.mark in marks:
                    exec(compile("\n" * (block.line - 1) + block.code, str(path), "exec"), vars(page))
        except Exception:
            return traceback.format_exc()
        finally:
            os.chdir(before)
    return ""


if __name__ == "__main__":
    slow = "--slow" in sys.argv
    pages = [Path(word).resolve() for word in sys.argv[1:] if word != "--slow"]
    failed = [text for path in pages if (text := run_page(path, ("", "slow") if slow else ("",)))]
    print("\n".join(failed), file=sys.stderr)
    sys.exit(bool(failed))
