"""The page of a reproduction: tables beside the papers', figures, claims, each with the command that measured it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure as Canvas

from mtmh.papers.claims import Judged
from mtmh.papers.models import PARTS, Part
from mtmh.papers.tables import Curve, Figure, Table

_STYLE = """
:root { color-scheme: light dark; } body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 14px; } td, th { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; } .paper { opacity: .65; } .scroll { overflow-x: auto; } figure { margin: 1rem 0; }
.holds { color: #16794c; } .contrary { color: #b3261e; } code { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
figure svg { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
"""  # noqa: E501
_VERDICTS = {"holds": "holds", "the contrary": "the contrary is seen", "not told": "cannot be told"}


@dataclass(frozen=True)
class Page:
    """All that a page shows.

    Attributes:
        title: of the page.
        facts: lines on data, seeds and machine.
        command: that makes the page.
        tables: in their order.
        figures: likewise.
        claims: likewise.
        failed: name of a run that did not come to its end -> the reason.
    """

    title: str
    facts: Sequence[str]
    command: str
    tables: Sequence[Table]
    figures: Sequence[Figure]
    claims: Sequence[Judged]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> list[Part]:
        """Tables and figures that have anything to show."""
        shown = {part.part for group in (self.tables, self.figures, self.claims) for part in group}
        return [part for part in PARTS if part in shown]


def markdown(page: Page) -> str:
    """The page without its drawings."""
    lines = [f"# {page.title}", "", *page.facts, "", "```sh", page.command, "```", ""]
    for part in page.parts:
        for table in (table for table in page.tables if table.part == part):
            lines += [f"## {table.title}", "", *_markdown_table(["", *table.headings], table.lines), ""]
        for figure in (figure for figure in page.figures if figure.part == part):
            lines += [f"## {figure.title}", "", *_markdown_points(figure), ""]
        claims = [claim for claim in page.claims if claim.part == part]
        if claims:
            cells = [[claim.text, _points(claim), _VERDICTS[claim.verdict]] for claim in claims]
            lines += [*_markdown_table(["claim", "difference, points", ""], cells), ""]
    lines += [f"* {name} is missing: {reason}" for name, reason in page.failed.items()]
    commands = list(dict.fromkeys(command for table in page.tables for command in table.commands))
    if commands:
        lines += ["## Commands of the models", "", "```sh", *commands, "```", ""]
    return "\n".join(lines)


def html(page: Page) -> str:
    """The page as one file without links to the outside."""
    title = escape(page.title)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>",
        "".join(f"<p>{escape(fact)}</p>" for fact in page.facts),
        f"<p><code>{escape(page.command)}</code></p>",
    ]
    for part in page.parts:
        parts += [_html_table(table) for table in page.tables if table.part == part]
        parts += [
            f"<h3>{escape(figure.title)}</h3><figure>{_drawn(figure)}</figure>"
            for figure in page.figures
            if figure.part == part
        ]
        parts.append(_html_claims([claim for claim in page.claims if claim.part == part]))
    parts += [f"<p>{escape(name)} is missing: {escape(reason)}</p>" for name, reason in page.failed.items()]
    return "\n".join([*parts, "</html>"])


def _points(claim: Judged) -> str:
    return f"{100 * claim.difference.value:+.2f} ±{100 * claim.difference.half:.2f}"


def _markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rows = [headings, ["---", *["---:"] * (len(headings) - 1)], *lines]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _markdown_points(figure: Figure) -> list[str]:
    lines = [
        [curve.name, label, str(x) if not figure.log_x else f"{100 * x.value:g}", str(y)]
        for curve in figure.curves
        for x, y, label in zip(curve.x, curve.y, curve.labels or [""] * len(curve.x), strict=True)
    ]
    return _markdown_table(["", "", *figure.axes], lines)


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in ["", *table.headings])
    body = "".join(
        f"<tr{' class=paper' if line[0].endswith(', paper') else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in line)
        + "</tr>"
        for line in table.lines
    )
    commands = "".join(f"<li><code>{escape(command)}</code></li>" for command in table.commands)
    return (
        f"<h2>{escape(table.title)}</h2><div class=scroll><table><tr>{head}</tr>{body}</table></div>"
        f"<details><summary>Commands</summary><ul>{commands}</ul></details>"
    )


def _html_claims(claims: Sequence[Judged]) -> str:
    if not claims:
        return ""
    body = "".join(
        f"<tr><td>{escape(claim.text)}</td><td>{_points(claim)}</td>"
        f"<td class='{claim.verdict.split()[-1]}'>{_VERDICTS[claim.verdict]}</td></tr>"
        for claim in claims
    )
    return (
        "<div class=scroll><table><tr><th>What the paper claims</th><th>difference here, points</th><th></th></tr>"
        f"{body}</table></div>"
    )


def _drawn(figure: Figure) -> str:
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtmh", "font.size": 11}):
        canvas = Canvas(figsize=(8.0, 4.6), layout="constrained")
        axes = canvas.subplots()
        for curve in figure.curves:
            _draw_curve(axes, curve)
        if figure.log_x:
            axes.set_xscale("log")
        axes.set_xlabel(figure.axes[0])
        axes.set_ylabel(figure.axes[1])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        drawn = io.StringIO()
        canvas.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    svg = drawn.getvalue()
    return svg[svg.index("<svg") :]


def _draw_curve(axes: object, curve: Curve) -> None:
    x, y = ([100 * point.value for point in points] for points in (curve.x, curve.y))
    bars = [100 * point.half for point in curve.y]
    style = "-" if len(x) > 1 else "none"
    axes.errorbar(x, y, yerr=bars, marker="o", linestyle=style, capsize=2, label=curve.name)  # type: ignore[attr-defined]
    for label, place in zip(curve.labels, zip(x, y, strict=True), strict=False):
        axes.annotate(label, place, (6, -12), textcoords="offset points", fontsize=9)  # type: ignore[attr-defined]
