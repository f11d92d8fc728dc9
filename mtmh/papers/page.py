"""The page of a reproduction: tables beside the papers', figures, claims, each with the command that measured it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from mtmh.pages.drawing import MARKERS, SERIES, SOFT, drawing
from mtmh.pages.page import Tone, callout, cell, figure, note, page, row, section, table
from mtmh.papers.claims import Judged, Verdict
from mtmh.papers.models import PARTS, Part
from mtmh.papers.tables import Curve, Figure, Table

_VERDICTS: dict[Verdict, str] = {
    "holds": "holds", "the contrary": "the contrary is seen", "not told": "cannot be told",
    "lists differ": "cannot be told: the better lists are longer",
}  # fmt: skip
_TONES: dict[Verdict, Tone] = {"holds": "good", "the contrary": "bad", "not told": "quiet", "lists differ": "quiet"}


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


def markdown(found: Page) -> str:
    """The page without its drawings."""
    lines = [f"# {found.title}", "", *found.facts, "", "```sh", found.command, "```", ""]
    for part in found.parts:
        for shown in (other for other in found.tables if other.part == part):
            lines += [f"## {shown.title}", "", *_markdown_table(["", *shown.headings], shown.lines), ""]
        for drawn in (other for other in found.figures if other.part == part):
            lines += [f"## {drawn.title}", "", *_markdown_points(drawn), ""]
        claims = [claim for claim in found.claims if claim.part == part]
        if claims:
            cells = [[claim.text, _points(claim), _VERDICTS[claim.verdict]] for claim in claims]
            lines += [*_markdown_table(["claim", "difference, points", ""], cells), ""]
    lines += [f"* {name} is missing: {reason}" for name, reason in found.failed.items()]
    commands = list(dict.fromkeys(command for shown in found.tables for command in shown.commands))
    if commands:
        lines += ["## Commands of the models", "", "```sh", *commands, "```", ""]
    return "\n".join(lines)


def html(found: Page) -> str:
    """The page as one file without links to the outside."""
    sections = []
    for part in found.parts:
        sections += [_html_table(shown) for shown in found.tables if shown.part == part]
        for drawn in (other for other in found.figures if other.part == part):
            sections.append(f"<h3>{escape(drawn.title)}</h3>{figure(_drawn(drawn))}")
        sections.append(_html_claims([claim for claim in found.claims if claim.part == part]))
    missing = [note(f"{name} is missing: {reason}") for name, reason in found.failed.items()]
    facts = [*map(note, found.facts), _commands([found.command])]
    return page(found.title, _outcome(found.claims), *facts, *sections, *missing)


def _outcome(claims: Sequence[Judged]) -> str:
    """How many claims hold, on top, and those that do not; nothing if none could be measured."""
    if not claims:
        return ""
    holding = sum(claim.verdict == "holds" for claim in claims)
    contrary = [claim.text for claim in claims if claim.verdict == "the contrary"]
    apart = sum(claim.verdict == "lists differ" for claim in claims)
    untold = len(claims) - holding - len(contrary) - apart
    lines = [f"Not here: {text}; the contrary is seen." for text in contrary]
    lines += [f"{untold} cannot be told: their intervals hold 0."] if untold else []
    lines += [f"{apart} cannot be told: the lists with more recall are longer."] if apart else []
    tone: Tone = "bad" if not holding and contrary else "good" if holding == len(claims) else ""
    return callout(f"{holding} of {len(claims)} claims of the papers hold here.", lines, tone)


def _points(claim: Judged) -> str:
    return f"{100 * claim.difference.value:+.2f} ±{100 * claim.difference.half:.2f}"


def _markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rows = [headings, ["---", *["---:"] * (len(headings) - 1)], *lines]
    return ["| " + " | ".join(cells) + " |" for cells in rows]


def _markdown_points(drawn: Figure) -> list[str]:
    lines = [
        [curve.name, label, str(x) if not drawn.log_x else f"{100 * x.value:g}", str(y)]
        for curve in drawn.curves
        for x, y, label in zip(curve.x, curve.y, curve.labels or [""] * len(curve.x), strict=True)
    ]
    return _markdown_table(["", "", *drawn.axes], lines)


def _html_table(shown: Table) -> str:
    rows = [row(map(cell, line), "quiet" if line[0].endswith(", paper") else "") for line in shown.lines]
    commands = f"<details><summary>Commands</summary>{_commands(shown.commands)}</details>" if shown.commands else ""
    return section(shown.title, table(["", *shown.headings], rows, "numbers"), commands)


def _commands(lines: Sequence[str]) -> str:
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def _html_claims(claims: Sequence[Judged]) -> str:
    rows = [
        row([cell(claim.text), cell(_points(claim)), cell(_VERDICTS[claim.verdict], _TONES[claim.verdict])])
        for claim in claims
    ]
    return table(["What the paper claims", "difference here, points", "verdict"], rows, "numbers") if rows else ""


def _drawn(found: Figure) -> str:
    with drawing(found.title) as made:
        axes = made.panels[0]
        for curve, color, marker in zip(found.curves, cycle(SERIES), cycle(["o", *MARKERS]), strict=False):
            _draw_curve(axes, curve, color, marker)
        if found.log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(found.axes[0])
        axes.set_ylabel(found.axes[1])
    return made.svg


def _draw_curve(axes: Axes, curve: Curve, color: str, marker: str) -> None:
    x, y = ([100 * point.value for point in points] for points in (curve.x, curve.y))
    bars = [100 * point.half for point in curve.y]
    line = "-" if len(x) > 1 else "none"
    axes.errorbar(x, y, yerr=bars, marker=marker, linestyle=line, color=color, capsize=2, label=curve.name)
    for label, place in zip(curve.labels, zip(x, y, strict=True), strict=False):
        axes.annotate(label, place, (6, -12), textcoords="offset points", color=SOFT, fontsize=9)
