"""Hooks of MkDocs: links of a page to files outside of docs/ work on the site as they do in the repository.

A file outside of docs/ that a page or the navigation names becomes a file of the site at its path in the repository:
`benchmarks/figures/report.png`, `launch/README.md`. Links are rewritten to the places on the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/NOTES.md", "examples/plugin/README.md", "launch/README.md")
LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)\s#]+)((?:#[^)\s]*)?\))")


def repository_path(uri: str) -> str:
    """Path in the repository of the site's file `uri`."""
    return uri if uri in PAGES else posixpath.join("docs", uri)


def site_path(path: str) -> str:
    """Place on the site of the repository's file `path`; the README's is the first page."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def linked(text: str, uri: str) -> list[str]:
    """Paths in the repository of the files that the page `uri` with this text links to."""
    folder = posixpath.dirname(repository_path(uri))
    return [posixpath.normpath(posixpath.join(folder, match[2])) for match in LINK.finditer(text)]


def on_files(files, config):
    """Adds the pages above, and what any page links to outside of docs/."""
    for path in PAGES:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for page in files.documentation_pages():
        for path in linked(page.content_string, page.src_uri):
            if site_path(path) == path and (ROOT / path).is_file() and path not in files.src_uris:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """The page's text with links to files of the repository as links to files of the site."""
    uri = page.file.src_uri
    folder = posixpath.dirname(repository_path(uri))

    def rewritten(match):
        path = posixpath.normpath(posixpath.join(folder, match[2]))
        if not (ROOT / path).is_file():
            return match[0]
        return match[1] + posixpath.relpath(site_path(path), posixpath.dirname(uri) or ".") + match[3]

    return LINK.sub(rewritten, markdown)
