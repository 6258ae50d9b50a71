"""Drawings of the docs: one function a drawing, placed in a page as SVG of its own text.

A page asks for one with the directive ``diagram`` and its name; the text under it is the
caption. As the SVG stands in the page, it takes the colours of the theme, light or dark
(`_static/site.css`). What is trained differs from what is frozen by more than its colour:
it has a thick frame.

    python docs/_diagrams.py FOLDER

writes them as files, to look at.
"""

import sys
from html import escape
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

FROZEN, TRAINED, PLAIN = "frozen", "trained", "plain"
WIDTH = 340


class Drawing:
    """Shapes on a sheet; x is where the middle of a shape is, y its upper edge."""

    def __init__(self, title, height):
        self.title, self.height = title, height
        self.parts = []

    def box(self, x, y, text, kind=FROZEN, width=110, height=32):
        self.parts.append(
            f'<rect class="{kind}" x="{x - width / 2:g}" y="{y:g}" '
            f'width="{width:g}" height="{height:g}" rx="4"/>'
        )
        self.text(x, y + height / 2 + 5, text)

    def funnel(self, x, y, text, top, bottom, height=36):
        """Trained matrix from `top` to `bottom` entries."""
        corners = [
            *((x - top / 2, y), (x + top / 2, y)),
            *((x + bottom / 2, y + height), (x - bottom / 2, y + height)),
        ]
        points = " ".join(f"{u:g},{v:g}" for u, v in corners)
        self.parts.append(f'<polygon class="{TRAINED}" points="{points}"/>')
        self.text(x, y + height / 2 + 5, text)

    def join(self, x, y, sign="+"):
        """Circle with its middle at (x, y), in which two values become one."""
        self.parts.append(f'<circle class="{PLAIN}" cx="{x:g}" cy="{y:g}" r="11"/>')
        self.text(x, y + 5, sign)

    def text(self, x, y, text, anchor="middle", small=False):
        size = ' class="small"' if small else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{size}>{escape(text)}</text>'
        )

    def line(self, *points, kind="flow"):
        joined = " ".join(f"{u:g},{v:g}" for u, v in points)
        self.parts.append(f'<polyline class="{kind}" points="{joined}"/>')

    def arrow(self, *points):
        """Line with a head; its last piece runs along an axis."""
        self.line(*points)
        (u, v), (x, y) = points[-2:]
        dx, dy = (x > u) - (x < u), (y > v) - (y < v)
        left = x - 8 * dx - 4 * dy, y - 8 * dy + 4 * dx
        right = x - 8 * dx + 4 * dy, y - 8 * dy - 4 * dx
        corners = " ".join(f"{a:g},{b:g}" for a, b in [(x, y), left, right])
        self.parts.append(f'<polygon class="head" points="{corners}"/>')

    def svg(self):
        """The sheet with a legend at its foot."""
        y = self.height + 8
        self.parts += [
            f'<rect class="{FROZEN}" x="60" y="{y}" width="24" height="14" rx="3"/>',
            f'<rect class="{TRAINED}" x="190" y="{y}" width="24" height="14" rx="3"/>',
        ]
        self.text(92, y + 12, "frozen", "start", small=True)
        self.text(222, y + 12, "trained", "start", small=True)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="diagram" role="img" '
            f'width="{WIDTH}" viewBox="0 0 {WIDTH} {y + 22}">'
            f"<title>{escape(self.title)}</title>{''.join(self.parts)}</svg>"
        )


def three_ways():
    d = Drawing(
        "None trains the head alone; an adapter trains small parts of the blocks and the "
        "head; full trains all blocks and the head.",
        250,
    )
    for x, name, kind in [
        (60, "None", FROZEN),
        (170, '"lora", …', FROZEN),
        (280, '"full"', TRAINED),
    ]:
        d.text(x, 16, name)
        for k in range(4):
            d.box(x, 32 + 38 * k, "block", kind, width=88, height=28)
            d.arrow((x, 60 + 38 * k), (x, 70 + 38 * k))
            if "lora" in name:
                d.box(x + 44, 38 + 38 * k, "", TRAINED, width=14, height=16)
        d.text(x, 198, "features")
        d.arrow((x, 204), (x, 216))
        d.box(x, 216, "head", TRAINED, width=88, height=28)
    return d


def block():
    d = Drawing(
        "A transformer block: queries, keys and values go into attention, its output layer, "
        "a sum and a normalisation, two feed-forward layers, a sum and a normalisation. "
        "LoRA stands beside query and value.",
        448,
    )
    d.text(170, 14, "hidden states of the tokens")
    d.line((170, 20), (170, 36))
    d.line((55, 36), (330, 36))
    for x, name in [(55, "query"), (165, "key"), (258, "value")]:
        d.arrow((x, 36), (x, 50))
        d.box(x, 50, name, width=74)
        if name != "key":
            d.box(x + 50, 52, "BA", TRAINED, width=26, height=28)
        d.arrow((x, 82), (x, 98))
    d.box(164, 98, "attention", PLAIN, width=292, height=26)
    tall = [
        (138, "attention_output", FROZEN),
        (232, "attention_norm", FROZEN),
        (276, "ffn_in", FROZEN),
        (320, "ffn_out", FROZEN),
        (410, "ffn_norm", FROZEN),
    ]
    for y, name, kind in tall:
        d.box(170, y, name, kind, width=140, height=28)
    d.arrow((170, 124), (170, 138))
    d.arrow((170, 166), (170, 188))
    d.join(170, 199)
    d.arrow((170, 210), (170, 232))
    d.arrow((170, 260), (170, 276))
    d.arrow((170, 304), (170, 320))
    d.arrow((170, 348), (170, 368))
    d.join(170, 379)
    d.arrow((170, 390), (170, 410))
    d.arrow((330, 36), (330, 199), (181, 199))
    d.arrow((170, 268), (292, 268), (292, 379), (181, 379))
    d.arrow((170, 438), (170, 450))
    return d


def two_stages():
    d = Drawing(
        "Stage one trains the adapters by the objective; stage two fits the head on adapted "
        "features.",
        268,
    )
    for x, name in [(85, "1. adapters"), (255, "2. head")]:
        d.text(x, 16, name)
        d.text(x, 44, "texts")
        d.arrow((x, 50), (x, 66))
        d.box(x, 66, "encoder", width=100, height=64)
        d.arrow((x, 130), (x, 146))
        d.text(x, 161, "features")
        d.arrow((x, 168), (x, 186))
    d.box(129, 82, "", TRAINED, width=14, height=32)
    d.box(299, 82, "", FROZEN, width=14, height=32)
    d.box(85, 186, "objective", PLAIN)
    d.box(255, 186, "head", TRAINED)
    d.text(85, 238, "gradients, some epochs", small=True)
    d.text(85, 254, "of batches", small=True)
    d.text(255, 238, "scikit-learn’s own fit,", small=True)
    d.text(255, 254, "all rows at once", small=True)
    d.arrow((30, 202), (12, 202), (12, 98), (35, 98))
    return d


def kept_states():
    d = Drawing(
        "Blocks below the lowest adapted one run once for a text; what they give is kept and "
        "read in every epoch by the adapted blocks.",
        272,
    )
    d.text(90, 14, "a text’s tokens")
    d.arrow((90, 20), (90, 34))
    for k in range(2):
        d.box(90, 34 + 40 * k, f"block {k + 1}", height=28)
        d.arrow((90, 62 + 40 * k), (90, 74 + 40 * k))
    d.box(90, 114, "kept states", PLAIN, width=130, height=32)
    for k in range(2):
        d.box(90, 160 + 40 * k, f"block {k + 3}", height=28)
        d.box(145, 166 + 40 * k, "", TRAINED, width=14, height=16)
        d.arrow((90, 146 + 42 * k), (90, 160 + 40 * k))
    d.text(90, 246, "…")
    d.arrow((90, 250), (90, 268))
    for top, bottom, lines in [
        (30, 108, ["once for a text"]),
        (154, 250, ["every epoch, fold,", "candidate and", "estimator"]),
    ]:
        d.line((172, top), (180, top), (180, bottom), (172, bottom))
        start = (top + bottom) / 2 + 5 - 9 * (len(lines) - 1)
        for k, line in enumerate(lines):
            d.text(190, start + 18 * k, line, "start")
    return d


def shrinkage():
    d = Drawing(
        "The model lies on the line from the frozen network to the trained one, where "
        "held-out rows put it.",
        112,
    )
    d.line((40, 60), (300, 60))
    for x, name, value in [
        (40, "frozen", "shrinkage_ = 1"),
        (300, "trained", "shrinkage_ = 0"),
    ]:
        d.line((x, 52), (x, 68))
        d.text(x, 40, name)
        d.text(min(max(x, 52), 288), 88, value, small=True)
    d.parts.append(f'<circle class="{TRAINED}" cx="250" cy="60" r="8"/>')
    d.text(226, 24, "the fitted model", small=True)
    d.line((236, 30), (248, 50))
    return d


def beside(d, middle, below, x_in="x"):
    """Frozen layer at the left and a funnel in and out at the right, summed at (170, y)."""
    d.text(170, 14, x_in)
    d.line((170, 20), (170, 34))
    d.line((85, 34), (250, 34))
    d.arrow((85, 34), (85, 50))
    d.arrow((250, 34), (250, 50))
    d.box(85, 50, "W", height=middle + 82)
    d.arrow((85, 132 + middle), (85, below), (159, below))
    d.arrow((250, 132 + middle), (250, below), (181, below))
    d.join(170, below)


def lora():
    d = Drawing(
        "LoRA: beside the frozen weight W, A narrows the input to the rank and B widens it "
        "again; the sum goes on.",
        212,
    )
    beside(d, 10, 170)
    d.funnel(250, 50, "A", 110, 44)
    d.arrow((250, 86), (250, 106))
    d.text(262, 101, "rank", "start", small=True)
    d.funnel(250, 106, "B", 44, 110)
    d.text(258, 160, "times s", "start", small=True)
    d.arrow((170, 181), (170, 200))
    d.text(170, 212, "+ b")
    return d


def dora():
    d = Drawing(
        "DoRA: as LoRA, and each row of the updated weight is brought to its old length "
        "times one plus m.",
        280,
    )
    beside(d, 10, 170)
    d.funnel(250, 50, "A", 110, 44)
    d.arrow((250, 86), (250, 106))
    d.text(262, 101, "rank", "start", small=True)
    d.funnel(250, 106, "B", 44, 110)
    d.text(258, 160, "times s", "start", small=True)
    d.arrow((170, 181), (170, 204))
    d.text(182, 198, "W + s B A, applied to x", "start", small=True)
    d.box(170, 204, "length of each row · (1 + m)", TRAINED, width=220)
    d.arrow((170, 236), (170, 262))
    d.text(170, 276, "+ b")
    return d


def hira():
    d = Drawing(
        "HiRA: each entry of the frozen weight W is multiplied by one plus that of B A, the "
        "product of two small matrices, and the result is applied to x.",
        150,
    )
    d.text(85, 14, "x")
    d.arrow((85, 20), (85, 92))
    d.box(190, 20, "W")
    d.box(296, 20, "1 + B A", TRAINED, width=80)
    d.line((296, 52), (296, 70), (201, 70))
    d.line((190, 52), (190, 59))
    d.join(190, 70, "⊙")
    d.arrow((179, 70), (140, 70), (140, 92))
    d.box(110, 92, "applied to x", width=110)
    d.arrow((110, 124), (110, 138))
    d.text(110, 150, "+ b")
    return d


def bottleneck():
    d = Drawing(
        "Bottleneck after a sub-layer: its output goes on, and through D, a non-linearity "
        "and U, and both are summed.",
        276,
    )
    d.text(170, 14, "x")
    d.arrow((170, 20), (170, 34))
    d.box(170, 34, "W, b", width=130)
    d.line((170, 66), (170, 84))
    d.text(160, 80, "h", "end")
    d.arrow((170, 84), (85, 84), (85, 238), (159, 238))
    d.arrow((170, 84), (250, 84), (250, 98))
    d.funnel(250, 98, "D, d", 110, 48)
    d.arrow((250, 134), (250, 146))
    d.box(250, 146, "ReLU", PLAIN, width=60, height=24)
    d.arrow((250, 170), (250, 182))
    d.funnel(250, 182, "U, u", 48, 110)
    d.arrow((250, 218), (250, 238), (181, 238))
    d.join(170, 238)
    d.text(258, 234, "times s", "start", small=True)
    d.arrow((170, 249), (170, 270))
    return d


def bottleneck_places():
    d = Drawing(
        "Places of bottlenecks in a block: houlsby after attention and after the "
        "feed-forward, pfeiffer after the feed-forward, parallel beside the feed-forward.",
        250,
    )
    for x, name, spots in [
        (50, "houlsby", ("attention", "feed-forward")),
        (146, "pfeiffer", ("feed-forward",)),
        (242, "parallel", ()),
    ]:
        d.text(x, 16, f'"{name}"')
        for y, part in [(40, "attention"), (142, "feed-forward")]:
            d.arrow((x, y - 14), (x, y))
            d.box(x, y, part, width=90, height=28)
            if part in spots:
                d.arrow((x, y + 28), (x, y + 44))
                d.funnel(x, y + 44, "", 44, 20, height=14)
                d.funnel(x, y + 58, "", 20, 44, height=14)
                d.arrow((x, y + 72), (x, y + 88))
            else:
                d.arrow((x, y + 28), (x, y + 88))
    d.arrow((242, 118), (315, 118), (315, 140))
    d.funnel(315, 140, "", 40, 20, height=16)
    d.funnel(315, 156, "", 20, 40, height=16)
    d.arrow((315, 172), (315, 195), (253, 195))
    d.join(242, 195)
    return d


def prefix():
    d = Drawing(
        "Prefix: a query attends to the tokens, and by itself to learned keys and values, "
        "whose values pass a gate and are added.",
        266,
    )
    d.text(170, 14, "x")
    d.arrow((170, 20), (170, 34))
    d.box(170, 34, "query", width=90)
    d.line((170, 66), (170, 82))
    d.text(180, 79, "q", "start")
    d.arrow((170, 82), (85, 82), (85, 98))
    d.arrow((170, 82), (250, 82), (250, 98))
    d.box(85, 98, "attention", width=130)
    d.text(85, 146, "keys and values", small=True)
    d.text(85, 162, "of the tokens", small=True)
    d.box(250, 98, "attention", PLAIN, width=130)
    d.arrow((250, 158), (250, 130))
    d.box(250, 158, "K, V", TRAINED, width=90, height=26)
    d.arrow((315, 114), (330, 114), (330, 215), (292, 215))
    d.box(262, 202, "gate g", TRAINED, width=60, height=26)
    d.arrow((232, 215), (181, 215))
    d.arrow((85, 168), (85, 215), (159, 215))
    d.join(170, 215)
    d.arrow((170, 226), (170, 244))
    d.text(170, 260, "to attention_output")
    return d


def ia3():
    d = Drawing(
        "IA3: what key and value give is multiplied by learned factors, and so is what goes "
        "into ffn_out.",
        206,
    )
    for x, name in [(50, "key"), (160, "value")]:
        d.text(x, 14, "x")
        d.arrow((x, 20), (x, 34))
        d.box(x, 34, name, width=84)
        d.arrow((x, 66), (x, 90))
        d.arrow((x, 112), (x, 136))
    d.text(268, 14, "activations")
    d.arrow((268, 20), (268, 90))
    d.arrow((268, 112), (268, 136))
    d.box(268, 136, "ffn_out", width=84)
    d.arrow((268, 168), (268, 190))
    for x in (50, 160, 268):
        d.join(x, 101, "×")
        d.arrow((x + 24, 101), (x + 11, 101))
        d.box(x + 44, 88, "1 + l", TRAINED, width=40, height=26)
    return d


def bitfit():
    d = Drawing(
        "BitFit: b is added to what a frozen layer or normalisation gives.", 150
    )
    d.text(110, 14, "x")
    d.arrow((110, 20), (110, 34))
    d.box(110, 34, "layer or norm", width=140)
    d.arrow((110, 66), (110, 92))
    d.join(110, 103)
    d.box(230, 88, "b", TRAINED, width=70, height=30)
    d.arrow((195, 103), (121, 103))
    d.arrow((110, 114), (110, 142))
    return d


def layer_norm():
    d = Drawing(
        "LayerNormTuning: what a frozen normalisation gives is multiplied by one plus g, and "
        "b is added.",
        194,
    )
    d.text(110, 14, "x")
    d.arrow((110, 20), (110, 34))
    d.box(110, 34, "norm", width=140)
    d.arrow((110, 66), (110, 88))
    for y, sign, name in [(99, "×", "1 + g"), (147, "+", "b")]:
        d.join(110, y, sign)
        d.box(230, y - 15, name, TRAINED, width=70, height=30)
        d.arrow((195, y), (121, y))
    d.arrow((110, 110), (110, 136))
    d.arrow((110, 158), (110, 186))
    return d


def ladder():
    d = Drawing(
        "LadderSide: beside each frozen block a rung reads its hidden states; what the rungs "
        "gather is added to the output of the last block.",
        272,
    )
    d.text(85, 14, "tokens")
    d.arrow((85, 20), (85, 34))
    for k in range(3):
        y = 34 + 66 * k
        d.box(85, y, f"block {k + 1}", height=28)
        d.line((85, y + 28), (85, y + 66))
        d.arrow((85, y + 42), (180, y + 42))
        d.box(215, y + 28, f"rung {k + 1}", TRAINED, width=70, height=28)
        d.line((250, y + 42), (296, y + 42))
        if k:
            d.arrow((215, y - 10), (215, y + 28))
    d.line((296, 76), (296, 208))
    d.text(304, 150, "U", "start")
    d.arrow((296, 208), (296, 241), (96, 241))
    d.arrow((85, 218), (85, 230))
    d.join(85, 241)
    d.arrow((85, 252), (85, 270))
    return d


def full():
    d = Drawing("Full fine-tuning: all weights of a private copy are trained.", 190)
    for x, name, kind in [
        (85, "shared encoder", FROZEN),
        (255, "private copy", TRAINED),
    ]:
        d.text(x, 16, name)
        for k in range(3):
            d.box(x, 32 + 44 * k, "block", kind, height=30)
            d.arrow((x, 62 + 44 * k), (x, 76 + 44 * k))
    d.arrow((145, 91), (195, 91))
    d.text(170, 84, "copy", small=True)
    d.text(85, 180, "features", small=True)
    d.text(255, 180, "adapted features", small=True)
    return d


DRAWINGS = {
    function.__name__: function
    for function in (
        *(three_ways, block, two_stages, kept_states, shrinkage),
        *(lora, dora, hira, bottleneck, bottleneck_places, prefix),
        *(ia3, bitfit, layer_norm, ladder, full),
    )
}


class Diagram(Directive):
    """A drawing by its name, with a caption under it."""

    required_arguments = 1
    has_content = True

    def run(self):
        name = self.arguments[0]
        if name not in DRAWINGS:
            raise self.error(f"no drawing {name!r}; there are {sorted(DRAWINGS)}")
        figure = nodes.figure(classes=["diagram"])
        figure += nodes.raw("", DRAWINGS[name]().svg(), format="html")
        if self.content:
            caption = nodes.caption()
            words, messages = self.state.inline_text(
                " ".join(self.content), self.lineno
            )
            caption += words
            figure += caption
            return [figure, *messages]
        return [figure]


def setup(app):
    app.add_directive("diagram", Diagram)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, function in DRAWINGS.items():
        (folder / f"{name}.svg").write_text(function().svg(), encoding="utf-8")
