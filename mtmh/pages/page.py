"""A page as one HTML file that fetches nothing: its frame, and the parts that pages share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Literal

Tone = Literal["", "good", "bad", "quiet"]


def page(title: str, *parts: str, subtitle: str = "", refresh: int | None = None) -> str:
    """The whole file.

    Args:
        title: as text.
        parts: HTML, in their order; empty ones are left out.
        subtitle: as text, under the title.
        refresh: seconds after which a browser loads it again; None: never.
    """
    template = Template((resources.files("mtmh.pages") / "page.html").read_text(encoding="utf-8"))
    head = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(subtitle)}</p>' if subtitle else ""]
    return template.substitute(
        title=escape(title),
        refresh=f'<meta http-equiv="refresh" content="{refresh}">' if refresh is not None else "",
        body="\n".join(filter(None, [*head, *parts])),
    )


def section(heading: str, *parts: str) -> str:
    """A heading, as text, and what stands under it; nothing if nothing does."""
    body = "\n".join(filter(None, parts))
    return f"\n<h2>{escape(heading)}</h2>\n{body}" if body else ""


def note(text: str) -> str:
    """A quiet paragraph."""
    return f'<p class="soft">{escape(text)}</p>'


def callout(headline: str, lines: Iterable[str] = (), tone: Tone = "") -> str:
    """The outcome, on top of a page: a headline and lines under it, as text."""
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="callout {tone}"><b>{escape(headline)}</b>{f"<ul>{listed}</ul>" if listed else ""}</div>'


def facts(named: Mapping[str, str]) -> str:
    """Figures or words side by side, by their names."""
    cards = "".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for name, value in named.items())
    return f'<ul class="facts">{cards}</ul>'


def cell(text: str, tone: Tone = "", small: str = "") -> str:
    """A cell of a table, as text, with a small line under it."""
    mark = f' class="{tone}"' if tone else ""
    return f"<td{mark}>{escape(text)}{f'<small>{escape(small)}</small>' if small else ''}</td>"


def row(cells: Iterable[str], mark: str = "") -> str:
    """A row of cells that are HTML; marks are ``strong``, ``quiet`` and ``rule`` (a line above)."""
    return f"<tr{f' class={chr(34)}{mark}{chr(34)}' if mark else ''}>{''.join(cells)}</tr>"


def table(headings: Sequence[str], rows: Iterable[str], kind: Literal["", "numbers", "short", "stacked"] = "") -> str:
    """A table that scrolls by itself where it is too wide.

    Args:
        headings: as text; none: a table without them.
        rows: as `row` makes them.
        kind: ``numbers``: all but the first column to the right; ``short``: no wider than it must be;
            ``stacked``: on a phone the cells of a row stand below each other.
    """
    # A heading that says nothing is none, and what scrolls can be reached by the keyboard.
    heads = "".join(f"<th>{escape(heading)}</th>" if heading else "<td></td>" for heading in headings)
    head = f"<thead><tr>{heads}</tr></thead>" if heads else ""
    return f'<div class="wide" tabindex="0"><table class="{kind}">{head}<tbody>{"".join(rows)}</tbody></table></div>'


def pairs(named: Mapping[str, str]) -> str:
    """Names and their values, a row each."""
    return table([], [row([cell(name), cell(value)]) for name, value in named.items()], "short")


def figure(svg: str, caption: str = "") -> str:
    """A drawing, with words under it."""
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="wide" tabindex="0">{svg}</div>{words}</figure>'
