"""Drawings of matplotlib as SVG elements in the colours of the page around them, light or dark."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Stand-ins in a drawing for the page's colours.
INK, SOFT, LINE = "#010101", "#020202", "#030303"
SERIES = ["#100000", "#100001", "#100002", "#100003", "#100004", "#100005"]
MARKERS = ["s", "D", "^", "v", "P", "X", "p", "<"]
_THEME = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"} | {
    color: f"var(--c{place})" for place, color in enumerate(SERIES)
}


@dataclass
class Drawing:
    """A figure in the making; ``svg`` is there once `drawing` has ended."""

    panels: list[Axes] = field(default_factory=list)
    svg: str = ""


@contextmanager
def drawing(label: str, *, panels: int = 1, height: float = 4.6) -> Iterator[Drawing]:
    """Axes to draw on, panels side by side.

    Args:
        label: for who does not see it.
        panels: how many.
        height: inches; the width is 7.2.
    """
    made = Drawing()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtmh", "font.size": 10, "axes.linewidth": 0.8}):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        for place in range(panels):
            axes = figure.add_subplot(1, panels, place + 1)
            axes.patch.set_alpha(0.0)
            axes.grid(color=LINE, linewidth=0.8)
            axes.tick_params(colors=SOFT, length=0)
            axes.xaxis.label.set_color(SOFT)
            axes.yaxis.label.set_color(SOFT)
            axes.set_axisbelow(True)
            for side, spine in axes.spines.items():
                spine.set_visible(side in ("left", "bottom"))
                spine.set_color(LINE)
            made.panels.append(axes)
        yield made
        handles, labels = made.panels[0].get_legend_handles_labels()
        if handles:
            figure.legend(
                handles, labels, frameon=False, loc="outside lower left", ncols=2, labelcolor=INK, fontsize=9.5
            )
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for color, variable in _THEME.items():
        svg = svg.replace(color, variable)
    made.svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
