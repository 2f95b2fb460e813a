"""Draws the figures of docs/concepts as SVG files; plain shapes on a light panel, so that dark pages show them too.

    python docs/draw_concepts.py

Every drawing is 480 units wide and its text at least 16, which is 12 pixels on a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

OUT = Path(__file__).resolve().parent / "concepts" / "drawings"
WIDTH = 480
INK, GREY, BLUE, ORANGE, GREEN = "#1f2430", "#5b6472", "#2b6cb0", "#b45309", "#2f7d4f"
PALE = {BLUE: "#dbe9f8", ORANGE: "#fbe6cf", GREEN: "#d9f0e1", GREY: "#eceff3"}
Point = tuple[float, float]


class Drawing:
    """An SVG in the making; the methods add shapes."""

    def __init__(self, height: int, label: str):
        self.height, self.label, self.parts = height, label, []

    def text(
        self, x: float, y: float, words: str, *, size: int = 16, colour: str = INK, anchor: str = "middle"
    ) -> None:
        """A line of text whose baseline is at y."""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">'
            f"{escape(words)}</text>"
        )

    def box(self, x: float, y: float, w: float, h: float, words: Sequence[str] = (), *, colour: str = GREY) -> None:
        """A box with lines of text in its middle."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="4" fill="{PALE[colour]}" stroke="{colour}" '
            'stroke-width="1.5"/>'
        )
        for i, line in enumerate(words):
            self.text(x + w / 2, y + h / 2 + 6 + 20 * (i - (len(words) - 1) / 2), line)

    def line(
        self, points: Sequence[Point], *, colour: str = INK, width: float = 2, dash: str = "", arrow: bool = False
    ) -> None:
        """A polyline, perhaps with an arrow head at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        more = (f' stroke-dasharray="{dash}"' if dash else "") + (' marker-end="url(#head)"' if arrow else "")
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}" '
            f'stroke-linejoin="round"{more}/>'
        )

    def svg(self) -> str:
        """The file."""
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="576" role="img" '
            f'aria-label="{escape(self.label)}" font-family="Helvetica, Arial, sans-serif">\n'
            f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>\n'
            f'<rect x="1" y="1" width="{WIDTH - 2}" height="{self.height - 2}" rx="8" fill="#ffffff" '
            f'stroke="#c9ced6"/>\n{body}\n</svg>\n'
        )


def spectralkd() -> Drawing:
    """Blocks of both networks with their pairs, and the loss of one pair."""
    d = Drawing(380, "Eight blocks of DeiT-Tiny are paired with eight of the 24 blocks of CaiT-S24")
    pairs = ((0, 0), (1, 1), *((i, i + 12) for i in range(6, 12)))
    d.text(240, 30, "teacher CaiT-S24: 24 blocks, 384 wide")
    d.text(240, 192, "student DeiT-Tiny: 12 blocks, 192 wide")
    for i, j in pairs:
        d.line([(24 + 36 * i + 18, 144), (24 + 18 * j + 9, 70)], colour=BLUE, width=1.5)
    for j in range(24):
        d.box(24 + 18 * j, 42, 16, 28, colour=BLUE if j in dict(pairs).values() else GREY)
    for i in range(12):
        d.box(24 + 36 * i, 144, 33, 28, colour=BLUE if i in dict(pairs) else GREY)
    d.text(240, 228, "the loss of one pair", colour=GREY)
    d.box(20, 242, 112, 52, ("student", "14×14×192"), colour=BLUE)
    d.box(20, 308, 112, 52, ("teacher", "14×14×384"), colour=BLUE)
    d.box(172, 308, 120, 52, ("neighbouring", "channels: mean"))
    d.box(332, 242, 128, 118, ("2-D FFT over", "space of both;", "mean squared", "difference"), colour=ORANGE)
    d.line([(132, 268), (330, 268)], arrow=True)
    d.line([(132, 334), (170, 334)], arrow=True)
    d.line([(292, 334), (330, 334)], arrow=True)
    return d


def distillation_dynamics() -> Drawing:
    """Lead of the feature terms over SoftKD at the epochs of the published logs."""
    d = Drawing(
        366, "Lead in top-1 of two feature terms over soft labels alone: six points at epoch 10, none at the end"
    )
    epochs = (10, 30, 50, 100, 150, 200, 250, 300)
    runs = (  # SoftKD, first + last, last: top-1 in the published logs
        (32.71, 54.46, 60.77, 66.68, 69.79, 72.67, 75.62, 76.95),
        (38.78, 57.76, 62.16, 66.88, 69.85, 72.89, 75.66, 76.98),
        (37.62, 56.81, 61.64, 66.65, 69.85, 72.74, 75.45, 76.79),
    )

    def at(epoch: float, gain: float) -> Point:
        return 60 + epoch * 1.3, 290 - gain * 34

    d.text(20, 32, "points of top-1 ahead of SoftKD (published logs)", anchor="start")
    for gain in range(0, 7, 2):
        d.line([at(0, gain), at(305, gain)], colour="#d5dae1", width=1)
        d.text(46, at(0, gain)[1] + 6, str(gain), anchor="end")
    for epoch in (10, 100, 200, 300):
        d.text(at(epoch, 0)[0], 322, str(epoch))
    d.text(258, 350, "epoch")
    for run, colour in ((runs[1], BLUE), (runs[2], ORANGE)):
        points = [at(e, a - b) for e, a, b in zip(epochs, run, runs[0], strict=True)]
        d.line(points, colour=colour, width=2.5)
        for x, y in points:
            d.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="4" fill="{colour}"/>')
    d.text(170, 108, "SpectralKD first + last", colour=BLUE, anchor="start")
    d.text(170, 132, "SpectralKD last", colour=ORANGE, anchor="start")
    return d


def sep_and_low_rank() -> Drawing:
    """Two opposite tokens with the same SEP."""
    d = Drawing(
        408, "A token with one active channel and a token that is spread over all channels have the same SEP curve"
    )
    spread = (14, -20, 22, -24, 25, 12, -22, 26, -18, 18, -23, -10)  # their sum is 0: a mean would bend the curve
    for x, name, heights in (
        (30, "one channel active", [0] * 4 + [26] + [0] * 7),
        (264, "all channels active", spread),
    ):
        d.text(x + 93, 32, name)
        for i, h in enumerate(heights):
            x_bar = x + 15.5 * i
            d.parts.append(f'<rect x="{x_bar:g}" y="{74 - max(h, 0)}" width="11" height="{abs(h)}" fill="{BLUE}"/>')
        d.line([(x, 74), (x + 186, 74)], colour=GREY)
        d.text(x + 93, 122, "12 channels", colour=GREY)
    d.line([(123, 134), (200, 166)], arrow=True)
    d.line([(357, 134), (280, 166)], arrow=True)
    d.text(240, 190, "energy of the FFT along channels, summed up")
    x0, y0, side = 160, 372, 165
    d.line([(x0, y0 - side), (x0, y0), (x0 + side, y0)], colour=GREY)
    d.line([(x0, y0), (x0 + side, y0 - side)], colour=ORANGE, width=3)
    d.line([(x0, y0 - side / 2), (x0 + side / 2, y0 - side / 2), (x0 + side / 2, y0)], colour=GREY, dash="4 4", width=1)
    d.text(x0 - 10, y0 - side + 12, "100 %", anchor="end")
    d.text(x0 - 10, y0 - side / 2 + 6, "50 %", anchor="end")
    d.text(x0 + side / 2, y0 + 24, "D/2")
    d.text(x0 + side, y0 + 24, "D")
    d.text(x0 + side + 8, y0 - side / 2 - 8, "the same line,", anchor="start", colour=ORANGE)
    d.text(x0 + side + 8, y0 - side / 2 + 14, "mean over", anchor="start", colour=ORANGE)
    d.text(x0 + side + 8, y0 - side / 2 + 36, "many tokens", anchor="start", colour=ORANGE)
    return d


def lift_and_widelast() -> Drawing:
    """Stacks of blocks of the students and the teacher; widths to scale."""
    d = Drawing(
        420, "DeiT-Tiny, Lift, WideLast and the teacher CaiT-S24 as stacks of blocks; only the last two widths differ"
    )
    columns = ((66, "DeiT-Tiny"), (182, "Lift"), (298, "WideLast"), (414, "CaiT-S24"))
    for x, name in columns:
        d.text(x, 30, name)
    for x, _ in columns[:3]:
        for i in range(11):
            d.box(x - 24, 340 - 20 * i, 48, 16)
    for x in (66, 182):
        d.box(x - 24, 120, 48, 16)
    d.box(134, 86, 96, 26, ("384",), colour=ORANGE)
    d.box(250, 110, 96, 26, ("384",), colour=ORANGE)
    for i in range(12):
        d.box(366, 340 - 20 * i, 96, 16, colour=BLUE)
    d.text(66, 70, "class")
    d.text(66, 90, "token")
    d.text(182, 56, "mean over")
    d.text(182, 76, "patches")
    d.text(298, 76, "class")
    d.text(298, 96, "token")
    for x in (66, 182, 298):
        d.text(x, 382, "192 wide", colour=GREY)
    d.text(414, 382, "384 wide", colour=GREY)
    d.text(414, 402, "(24 blocks)", colour=GREY)
    d.text(182, 404, "orange: kept at inference", colour=ORANGE)
    return d


def mdbn() -> Drawing:
    """A base block, and the whole network."""
    d = Drawing(348, "A base block of MDBN: a deep branch of two convolutions and a shallow branch of one, added")
    d.text(240, 30, "base block")
    d.box(16, 96, 40, 36, ("x",))
    d.box(96, 50, 92, 40, ("conv 3×3",), colour=BLUE)
    d.box(204, 50, 64, 40, ("GELU",), colour=BLUE)
    d.box(284, 50, 92, 40, ("conv 3×3",), colour=BLUE)
    d.box(190, 138, 92, 40, ("conv 3×3",), colour=ORANGE)
    d.box(392, 96, 72, 36, ("+ GELU",))
    d.line([(56, 108), (72, 108), (72, 70), (94, 70)], arrow=True)
    d.line([(188, 70), (202, 70)], arrow=True)
    d.line([(268, 70), (282, 70)], arrow=True)
    d.line([(376, 70), (428, 70), (428, 94)], arrow=True)
    d.line([(56, 120), (72, 120), (72, 158), (188, 158)], arrow=True)
    d.line([(282, 158), (428, 158), (428, 134)], arrow=True)
    d.text(330, 112, "deep", colour=BLUE)
    d.text(330, 150, "shallow", colour=ORANGE)
    d.text(240, 216, "network: small image in, large image out")
    d.box(16, 234, 82, 52, ("conv", "3 → 64"))
    d.box(122, 234, 132, 52, ("6 residual", "blocks, conv"), colour=GREEN)
    d.box(278, 234, 78, 52, ("conv,", "shuffle"))
    d.box(380, 234, 84, 52, ("conv", "64 → 3"))
    for a, b in ((98, 120), (254, 276), (356, 378)):
        d.line([(a, 260), (b, 260)], arrow=True)
    d.line([(108, 260), (108, 312), (266, 312), (266, 264)], arrow=True)
    d.text(187, 334, "long skip", colour=GREY)
    return d


def brain_cliplm() -> Drawing:
    """Words, certainties, anchors, candidates."""
    d = Drawing(
        430, "EEG of single words becomes keywords with a certainty; the most certain are anchors, which rank sentences"
    )
    d.text(240, 30, "EEG of each fixated word: 8 bands × 105 electrodes")
    words = (
        ("she", "NULL", ".9"),
        ("wrote", "write", ".3"),
        ("a", "NULL", ".9"),
        ("novel", "novel", ".8"),
        ("in", "NULL", ".9"),
        ("Paris", "Paris", ".6"),
    )
    for i, (word, keyword, certainty) in enumerate(words):
        x = 14 + 76 * i
        anchor = keyword in ("novel", "Paris")
        d.box(x, 44, 72, 32, (word,))
        d.line([(x + 36, 76), (x + 36, 104)], arrow=True)
        d.box(x, 158, 72, 52, (keyword, certainty), colour=GREEN if anchor else GREY)
        d.line([(x + 36, 138), (x + 36, 156)], arrow=True)
    d.box(14, 106, 452, 32, ("network of single words: keyword or NULL, with a certainty",), colour=BLUE)
    d.text(240, 238, "the k most certain keywords, in reading order: anchors", colour=GREEN)
    d.line([(240, 246), (240, 268)], arrow=True)
    d.box(120, 270, 240, 32, ("novel   Paris",), colour=GREEN)
    d.line([(180, 302), (120, 330)], arrow=True)
    d.line([(300, 302), (360, 330)], arrow=True)
    d.box(14, 332, 216, 78, ("score of every candidate", "sentence; top-5 of N", "beside chance 5/N"), colour=ORANGE)
    d.box(250, 332, 216, 78, ("a language model", "writes or re-ranks", "(optional)"))
    return d


DRAWINGS: tuple[Callable[[], Drawing], ...] = (
    spectralkd,
    distillation_dynamics,
    sep_and_low_rank,
    lift_and_widelast,
    mdbn,
    brain_cliplm,
)


def main() -> None:
    """Writes every drawing."""
    OUT.mkdir(parents=True, exist_ok=True)
    for draw in DRAWINGS:
        (OUT / f"{draw.__name__}.svg").write_text(draw().svg())


if __name__ == "__main__":
    main()
