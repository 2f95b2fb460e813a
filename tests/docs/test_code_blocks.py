"""The documentation: its Python blocks run, its links lead somewhere, and the messages that it explains exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from code_blocks import PAGES, ROOT, blocks

EXAMPLES = [*(ROOT / "examples").rglob("*.md"), ROOT / "launch" / "README.md", ROOT / "CONTRIBUTING.md"]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def run(pages: list[Path], *options: str) -> subprocess.CompletedProcess:
    program = [sys.executable, str(Path(__file__).parent / "code_blocks.py"), *options, *map(str, pages)]
    return subprocess.run(program, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_the_python_blocks_of_all_pages_run():
    done = run([p for p in PAGES if any(block.runs for block in blocks(p.read_text()))], "--prepared")
    assert done.returncode == 0, done.stderr


def test_a_block_that_fails_is_reported_with_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n<!-- not run: no data -->\n```python\n1 / 0\n```\n")
    assert run([page]).returncode == 0
    page.write_text(page.read_text() + "\n```python\nassert x == 1\nassert x == 2\n```\n")
    done = run([page])
    assert done.returncode == 1 and "line 14" in done.stderr and "AssertionError" in done.stderr
    with pytest.raises(ValueError, match="not run: reason"):
        blocks("<!-- not run -->\n```python\n```\n")
    with pytest.raises(ValueError, match="not closed"):
        blocks("```python\nx\n")


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    headings = (re.sub(r"[`*]|\[|\]\([^)]*\)", "", h.lower()) for h in re.findall(r"^#+ (.*)$", text, re.M))
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in headings}


def dead_links(path: Path) -> list[str]:
    """Relative links and pictures of a page whose file or anchor does not exist."""
    text = re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.M | re.S)
    dead = []
    for link in LINK.findall(text):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


def test_links_anchors_and_pictures_exist(tmp_path):
    found = {str(path.relative_to(ROOT)): dead_links(path) for path in [*PAGES, *EXAMPLES]}
    assert not {page: dead for page, dead in found.items() if dead}
    page = tmp_path / "page.md"
    page.write_text("# A `title`, here\n\n[a](#a-title-here) [b](#other) ![c](no.png) [d](page.md#a-title-here)\n")
    assert dead_links(page) == ["#other", "no.png"]


def literals() -> list[str]:
    """The texts in jaxkd's source, with a null character for each inserted value."""
    found = []
    for path in (ROOT / "jaxkd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
    return found


def test_the_messages_that_troubleshooting_explains_are_those_of_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    known = literals()
    parts = [part.strip() for message in messages for part in message.split("...") if part.strip()]
    assert len(messages) >= 15
    assert not [part for part in parts if not any(part in text for text in known)]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
