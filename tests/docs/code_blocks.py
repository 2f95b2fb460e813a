"""Fenced code blocks of the documentation: collects them, and runs the Python blocks of pages in one process.

    python tests/docs/code_blocks.py docs/howto/loop.md [--prepared]

A page is one namespace, run in order in a folder of its own; with `--prepared` it finds there what `prepared.py` made.
`<!-- not run: reason -->` on the line before a block leaves it out. A block that imports PyTorch or timm is left out
where these are not installed.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import traceback
import types
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"<!-- not run: \S.* -->")
FENCE = re.compile(r"^( *)```(\w*)$")


class Block(NamedTuple):
    line: int  # of its first line of code, from 1
    language: str
    code: str
    mark: str  # "" or "not run: reason"

    @property
    def runs(self) -> bool:
        """Whether it is Python that is meant to run here."""
        extras = re.findall(r"^import (torch|timm)$", self.code, re.M)  # of the extra `parity`
        return self.language == "python" and not self.mark and all(map(find_spec, extras))


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
            raise ValueError(f'line {i}: "{before}" is not <!-- not run: reason -->')
        mark = before.removeprefix("<!-- ").removesuffix(" -->") if MARK.fullmatch(before) else ""
        code = "\n".join(line.removeprefix(start[1]) for line in lines[i + 1 : end])
        found.append(Block(i + 2, start[2], code, mark))
        i = end + 1
    return found


def run_page(path: Path, prepared: Path) -> str:
    """Runs the Python blocks of a page beside what it names of `prepared`; returns a traceback, or "" if all ended."""
    page = types.ModuleType("page")
    sys.modules["page"] = page  # flax looks up the module of a class
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        text = path.read_text()
        for entry in (e for e in prepared.iterdir() if e.name in text):
            copy = shutil.copytree if entry.is_dir() else shutil.copy
            copy(entry, Path(folder) / entry.name)
        os.chdir(folder)
        try:
            for block in blocks(text):
                if block.runs:
                    exec(compile("\n" * (block.line - 1) + block.code, str(path), "exec"), vars(page))
        except Exception:
            return traceback.format_exc()
        finally:
            os.chdir(before)
    return ""


if __name__ == "__main__":
    pages = [Path(word).resolve() for word in sys.argv[1:] if word != "--prepared"]
    with tempfile.TemporaryDirectory() as made:
        if "--prepared" in sys.argv:
            from prepared import prepare

            prepare(Path(made))
            if find_spec("torch"):
                sys.path.insert(0, str(ROOT / "tests"))
                from torchvision_operators import torchvision_library

                library = torchvision_library()  # alive until the pages have run
        failed = [text for path in pages if (text := run_page(path, Path(made)))]
    print("\n".join(failed), file=sys.stderr)
    sys.exit(bool(failed))
