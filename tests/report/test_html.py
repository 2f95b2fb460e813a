"""The page: complete, alone, escaped, honest about what is missing, and no wider than a phone."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image
from synthetic_results import make, make_broken

from jaxkd.report import figures, html
from jaxkd.report.plan import Figure

VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """Checks that tags close in order, and gathers text, pictures, links and anchors."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.text, self.images, self.links, self.ids, self.tags = [], [], [], [], set(), []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            assert attributes.get("alt"), "a picture without words"
            self.images.append(attributes["src"])
        if tag == "a":
            self.links.append(attributes["href"])
        if "id" in attributes:
            assert attributes["id"] not in self.ids
            self.ids.add(attributes["id"])
        assert not any(name.startswith("on") for name in attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def built(results, folder):
    """(source, parsed page), with small grey pictures in place of the figures, which have tests of their own."""
    out = []
    absent = {title for title, _ in figures.left_out(results)}
    for i, plan in enumerate(p for p in figures.PLANS if p.title not in absent):
        png = folder / "figures" / f"{plan.name}.png"
        png.parent.mkdir(exist_ok=True)
        Image.new("L", (700 + 100 * i, 300), 10 * i).save(png)
        out.append(Figure(plan.name, plan.title, plan.family, png, png.with_suffix(".pdf"), plan.caption(results)))
    html.write_report(results, out, folder / "report.html")
    source = (folder / "report.html").read_text(encoding="utf-8")
    return source, Page(source)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    return folder, *built(make(2), folder)


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    return folder, *built(make_broken(3), folder)


def test_the_page_holds_every_figure_and_needs_nothing_else(good):
    folder, source, page = good
    assert len(page.images) == len(figures.PLANS)
    for image, plan in zip(page.images, figures.PLANS, strict=True):
        kind, _, data = image.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == (folder / "figures" / f"{plan.name}.png").read_bytes()
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", source) and "url(" not in source
    assert "@import" not in source and 'name="viewport"' in source and "prefers-color-scheme: dark" in source
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links) and len(page.links) > 6


def test_models_stand_side_by_side(good):
    _, source, page = good
    head = re.search(r'<table class="side"><thead><tr>(.*?)</tr>', source).group(1)
    cells = re.findall(r"<th[^>]*>(.*?)</th>", head)
    assert cells == ["", "cait_s24_224", "deit_tiny_patch16_224"]
    text = " ".join(page.text)
    for words in ("46,916,000", "block_5: 16 x 24", "n = 12 images", "python -m jaxkd.analyze", "What it cannot show"):
        assert words in text, words
    assert source.count("<table") == source.count('<div class="scroll" tabindex="0"><table')
    assert "The profile is high in the first two" in text


def test_text_from_outside_is_escaped(bad, tmp_path):
    _, source, page = bad
    assert "a<b>" not in source and "<one>" not in source and "<cat>" not in source
    text = "".join(page.text)
    assert 'a<b>&"$x_1$' in text and "<one>" in text and "<cat>.jpg" in text
    evil = make(1)
    evil["models"][0]["notes"] = ["</main><script>alert(1)</script>"]
    evil["settings"]["command"] = '"><img src=x onerror=alert(1)>'
    html.write_report(evil, [], tmp_path / "report.html")
    tags = Page((tmp_path / "report.html").read_text()).tags
    assert "script" not in tags and "img" not in tags


def test_what_is_missing_is_said_with_its_reason(bad):
    _, _, page = bad
    text = "".join(page.text)
    assert "Not in this report" in text and "Gradients were not asked for" in text
    assert "CKA needs four images or more" in text
    assert "The picture gone.png is not there." in text
    assert "undefined" not in " ".join(page.text[:60])  # a null is a dash in the overview


def test_saliency_pictures_are_embedded(tmp_path):
    results = make(1)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "s.png")
    Image.new("P", (8, 8)).save(tmp_path / "s.gif")
    entry = {"model": "cait_s24_224", "image": "dog.jpg", "class": 207, "png": "s.png", "gif": "s.gif"}
    results["saliency"] = [entry | {"completeness_error": 0.0123}]
    html.write_report(results, [], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert [i.split(";")[0] for i in page.images] == ["data:image/png", "data:image/gif"]
    assert base64.b64decode(page.images[1].split(",")[1]) == (tmp_path / "s.gif").read_bytes()
    assert "completeness error of integrated gradients 0.0123" in "".join(page.text)
    # nothing but pictures is ever read into the page
    (tmp_path / "secret.txt").write_text("secret")
    assert html.data_url(tmp_path / "secret.txt") is None


def test_a_page_of_nothing_still_opens(tmp_path):
    html.write_report({"settings": None, "models": []}, [], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert "Not in this report" in "".join(page.text)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", (390, 1280))
def test_the_page_does_not_scroll_sideways(bad, width, tmp_path):
    folder, _, _ = bad
    frame = (
        f'<iframe id="f" src="{(folder / "report.html").as_uri()}" width="{width}" height="900"></iframe><script>'
        "onload = () => { const d = f.contentDocument.documentElement;"
        "document.title = `${d.scrollWidth} ${d.clientWidth} end` }</script>"
    )
    (tmp_path / "frame.html").write_text(frame)
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--dump-dom",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    scroll, client = re.search(r"<title>(\d+) (\d+) end", dom).groups()
    assert scroll == client
