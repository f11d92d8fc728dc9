"""The report of a teacher check: one HTML file with a table and a picture, that needs nothing else."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mtmh.content.check_metrics import Agreement

_MIN_PAIRS = 50  # a bin of fewer pairs says nothing
_STYLE = """
body { margin: 0 auto; max-width: 1000px; padding: 24px; font: 15px/1.5 system-ui, sans-serif; color: #1d2330;
       background: #fff; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 18px; margin: 32px 0 8px; } p { max-width: 78ch; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid #d9dde5; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; } .bad { color: #b42318; font-weight: 600; } .good { color: #15803d; font-weight: 600; }
figure { margin: 0; } figure svg { width: 100%; height: auto; }
"""


def write_check_report(
    facts: Mapping[str, Any],
    found: Sequence[Agreement],
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    path: Path,
) -> None:
    """Writes the report.

    Args:
        facts: what the check has found, as in ``metrics.json``.
        found: the rows of the table.
        heads: names of the table's figures.
        rows: the figures of each row.
        path: the file.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in ["", *heads])
    body = "".join(
        f"<tr><td>{escape(row.name)}</td>{''.join(f'<td>{value}</td>' for value in values)}</tr>"
        for row, values in zip(found, rows, strict=True)
    )
    title = f"Teacher of {facts['recipe']} against topics"
    path.write_text(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>All pairs of {facts["num_items"]:,} labelled items of {escape(facts["source"])};
{facts["num_items_without_all_content"]:,} items of the sample were left out because some of their content is missing
or broken.</p>
{_verdict(facts["failures"])}
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p>AUC: the chance that a pair of items with the same topic is more similar than a pair with different topics; 0.5 is
a coin. P@k, precision at k: the mean share of an item's k nearest neighbours, within the sample, that have its
topic.</p>
<h2>What a similarity means</h2>
<figure>{calibration_svg(found)}</figure>
<p>The share of same-topic pairs among all pairs of about that cosine; bins of fewer than {_MIN_PAIRS} pairs are left
out. A steep curve that starts near 0 and ends near 1 is a teacher whose similarities can be trusted as soft labels.</p>
</body></html>
""",
        encoding="utf-8",
    )


def calibration_svg(found: Sequence[Agreement]) -> str:
    """One panel a level: share of same-topic pairs against cosine, a line for each row, as an SVG element."""
    levels = list(found[0].auc)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtmh", "font.size": 10}):
        figure = Figure(figsize=(4.8 * len(levels), 3.8), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        for place, level in enumerate(levels):
            axes = figure.add_subplot(1, len(levels), place + 1)
            _draw_level(axes, found, level)
            if place == 0:
                axes.legend(frameon=False, loc="upper left")
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _draw_level(axes: Axes, found: Sequence[Agreement], level: str) -> None:
    for row in found:
        edges, shares = row.calibration.edges, row.calibration.same[level]
        points = [
            ((low + high) / 2.0, share)
            for low, high, share, pairs in zip(edges[:-1], edges[1:], shares, row.calibration.pairs, strict=True)
            if share is not None and pairs >= _MIN_PAIRS
        ]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=row.name)
    axes.set_xlabel("cosine of the pair")
    axes.set_ylabel(f"share with the same {level}")
    axes.set_ylim(0.0, 1.02)
    axes.grid(linewidth=0.5, alpha=0.5)


def _verdict(failures: Sequence[str]) -> str:
    if not failures:
        return '<p class="good">Every gate that the recipe sets is passed.</p>'
    return "".join(f'<p class="bad">{escape(failure)}</p>' for failure in failures)
