"""The report of an evaluation: one HTML file that needs nothing else."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mtmh.evaluation.metrics import Estimate
from mtmh.evaluation.results import Difference, Evaluation, Row
from mtmh.evaluation.tables import columns, figures, percent
from mtmh.evaluation.verdict import verdict

# Stand-ins in the drawing for the page's colours, so that the figure follows the light or dark theme.
_INK, _SOFT, _LINE = "#010101", "#020202", "#030303"
_SERIES = ["#100000", "#100001", "#100002", "#100003", "#100004", "#100005"]
_THEME = {_INK: "var(--ink)", _SOFT: "var(--soft)", _LINE: "var(--line)"} | {
    color: f"var(--c{place})" for place, color in enumerate(_SERIES)
}
_MARKERS = ["s", "D", "^", "v", "P", "X"]


def write_report(evaluation: Evaluation, others: Sequence[Evaluation], path: Path) -> None:
    """Writes the report of a model, with other models beside it."""
    template = Template((resources.files("mtmh.evaluation") / "report.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(f"{evaluation.model} on {evaluation.dataset}"),
        subtitle=escape(_subtitle(evaluation)),
        verdict=_verdict(evaluation),
        facts=_facts(evaluation),
        curve=_curve_section(evaluation, others),
        results=_results(evaluation, others),
        more=_more(evaluation, others),
        comparison=_comparison(evaluation),
        seen="Items of the training history are neither answers nor ground truth."
        if evaluation.protocol.exclude_seen
        else "Items of the training history count like any other.",
        k=str(evaluation.protocol.k),
        settings=_settings(evaluation),
    )
    path.write_text(page, encoding="utf-8")


def _subtitle(evaluation: Evaluation) -> str:
    facts = (
        f"{evaluation.num_users:,} users, {evaluation.num_pairs:,} user triggers,"
        f" {evaluation.num_items:,} items in the catalogue."
    )
    return f"{evaluation.description} {facts}".strip()


def _facts(evaluation: Evaluation) -> str:
    merged, largest = evaluation.merged, evaluation.protocol.recall_at[-1]
    facts = [
        (percent(merged.recall[largest]) + " %", f"recall@{largest}"),
        *(
            (percent(match) + " %", name)
            for name, match in (("L1 topic match", merged.match_l1), ("L2 topic match", merged.match_l2))
            if match is not None
        ),
        (percent(merged.coverage) + " %", "catalogue coverage"),
    ]
    if merged.alpha is not None:
        facts.append((f"{merged.alpha:g} %", "alpha: engagement head's share"))
    return "".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for value, name in facts)


def _verdict(evaluation: Evaluation) -> str:
    first, *more = [*verdict(evaluation), *(f"Note: {note}." for note in evaluation.notes)]
    lines = "".join(f"<li>{escape(line)}</li>" for line in more)
    return f"<p><b>{escape(first)}</b></p><ul>{lines}</ul>"


def _groups(evaluation: Evaluation, others: Sequence[Evaluation]) -> list[list[Row]]:
    """The rows of the tables, a rule between the groups."""
    beside = [row for other in others for row in (other.merged, *other.of_kind("exact")[:1])]
    return [
        evaluation.of_kind("merged", "head", "own-score", "preranking", "published"),
        evaluation.of_kind("exact"),
        beside,
        evaluation.of_kind("yardstick"),
        evaluation.of_kind("candidates"),
        evaluation.of_kind("alpha"),
    ]


def _results(evaluation: Evaluation, others: Sequence[Evaluation]) -> str:
    rows = [[(row, figures(row)) for row in group] for group in _groups(evaluation, others)]
    return _table(evaluation, columns(evaluation.protocol.recall_at), rows)


def _more(evaluation: Evaluation, others: Sequence[Evaluation]) -> str:
    """NDCG, hit rate and recall of fresh items by cut-off, and the share of fresh items in the lists."""
    ks = evaluation.protocol.recall_at
    fresh = evaluation.merged.fresh_recall[ks[-1]] is not None
    headings = [f"{name}@{k}" for name in ("NDCG", "hit rate", *(["fresh recall"] if fresh else [])) for k in ks]
    rows = [
        [
            (
                row,
                [*row.ndcg.values(), *row.hit_rate.values(), *(row.fresh_recall.values() if fresh else []), row.fresh],
            )
            for row in group
        ]
        for group in _groups(evaluation, others)
    ]
    return _table(evaluation, [*headings, "fresh share"], rows)


def _table(
    evaluation: Evaluation,
    headings: Sequence[str],
    groups: Sequence[Sequence[tuple[Row, Sequence[Estimate | float | None]]]],
) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in ["", *headings])
    body: list[str] = []
    for group in groups:
        for place, (row, shown) in enumerate(group):
            mark = "merged" if row is evaluation.merged else row.kind if row.kind == "yardstick" else ""
            rule = " rule" if place == 0 and body else ""
            cells = "".join(f"<td>{_figure(figure)}</td>" for figure in shown)
            body.append(f'<tr class="{mark}{rule}"><td>{escape(row.name)}</td>{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _figure(figure: Estimate | float | None) -> str:
    value = percent(figure)
    if not isinstance(figure, Estimate):
        return value
    return f"{value}<small>±{50 * (figure.high - figure.low):.2f}</small>"


def _comparison(evaluation: Evaluation) -> str:
    if not evaluation.differences:
        return ""
    ks = evaluation.protocol.recall_at
    rows = "".join(
        f"<tr><td>{escape(evaluation.model)} − {escape(model)}</td><td>{found.num_users:,}</td>"
        f"{''.join(f'<td>{_signed(found.recall[k])}</td>' for k in ks)}<td>{_signed(found.match_l2)}</td></tr>"
        for model, found in evaluation.differences.items()
    )
    heads = "".join(f"<th>recall@{k}</th>" for k in ks)
    return (
        "<h2>Differences to other models</h2>"
        '<p class="soft">Merged answers, percentage points, paired by user, with the 95 % interval.'
        " An interval without 0 is a difference that another sample of users would very likely show as well.</p>"
        f'<div class="wide"><table><thead><tr><th></th><th>shared users</th>{heads}<th>L2 match</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        + "".join(_making(evaluation.model, model, found) for model, found in evaluation.differences.items())
    )


def _making(model: str, other: str, found: Difference) -> str:
    """Steps and settings in which two models differ."""
    differs = {"steps of training": found.steps} if found.steps[0] != found.steps[1] else {}
    differs |= found.settings
    if not differs:
        return f'<p class="soft">{escape(model)} and {escape(other)} have the same settings and steps.</p>'
    rows = "".join(
        f"<tr><td>{escape(key)}</td>{''.join(f'<td>{escape(_value(value))}</td>' for value in values)}</tr>"
        for key, values in differs.items()
    )
    return (
        f'<h3>What differs between {escape(model)} and {escape(other)}</h3><div class="wide"><table class="settings">'
        f"<thead><tr><th></th><th>{escape(model)}</th><th>{escape(other)}</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _value(value: Any) -> str:
    return (
        "–" if value is None else f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    )


def _signed(figure: Estimate | None) -> str:
    if figure is None:
        return "–"
    return f"{100 * figure.value:+.2f}<small>{100 * figure.low:+.2f} to {100 * figure.high:+.2f}</small>"


def _settings(evaluation: Evaluation) -> str:
    protocol = evaluation.protocol
    without = evaluation.num_users_without_truth
    settings = {
        "users": f"{evaluation.num_users:,}"
        + (f" ({without:,} of the sample left out: no new item in the test period)" if without else ""),
        "triggers a user": f"the last {protocol.num_triggers} distinct items of the training history",
        "candidates a trigger and head (k_ann)": f"{evaluation.k_ann:,}",
        "clusters searched (num_probes)": f"{evaluation.num_probes:,}",
        "preranker of each head": evaluation.preranker,
        "score of the final sort": evaluation.sorter,
        "kept a trigger (K)": str(protocol.k),
        "share of the engagement head (alpha)": f"{evaluation.alpha:g} %"
        if evaluation.merged.alpha is not None
        else "–",
        "list of a user": f"{protocol.recall_at[-1]} items at most, {evaluation.merged.list_length:.0f} on average",
        "steps of training": "–" if evaluation.steps is None else f"{evaluation.steps:,}",
        "seed": str(evaluation.seed),
        "dataset digest": evaluation.dataset_digest[:16],
    }
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in settings.items())
    return f'<table class="settings"><tbody>{rows}</tbody></table>'


def _curve_section(evaluation: Evaluation, others: Sequence[Evaluation]) -> str:
    if evaluation.merged.match_l2 is None:
        return '<p class="soft">This dataset has no topics, so there is no relevance to draw.</p>'
    largest = evaluation.protocol.recall_at[-1]
    caption = f"Up is more recall@{largest}, right is more L2 topic match. Bars: 95 % intervals."
    if evaluation.sweep():
        caption += (
            " The line: the heads alone by alpha (the numbers), chosen at serving time; the ring: the recipe's answer."
        )
    return f"<figure>{curve_svg(evaluation, others)}<figcaption>{escape(caption)}</figcaption></figure>"


def curve_svg(evaluation: Evaluation, others: Sequence[Evaluation]) -> str:
    """Recall at the largest cut-off against L2 match as an SVG element; needs a dataset with topics."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtmh", "font.size": 11, "axes.linewidth": 0.8}):
        figure = Figure(figsize=(9.0, 5.2), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        largest = evaluation.protocol.recall_at[-1]
        axes.set_xlabel("L2 topic match, percent", color=_SOFT)
        axes.set_ylabel(f"recall@{largest}, percent", color=_SOFT)
        axes.patch.set_alpha(0.0)
        axes.grid(color=_LINE, linewidth=0.8)
        axes.tick_params(colors=_SOFT, length=0)
        axes.margins(0.1)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_LINE)
        axes.set_axisbelow(True)
        _draw_model(axes, evaluation, largest, _SERIES[0], labelled=True)
        for place, other in enumerate(others):
            _draw_model(axes, other, largest, _SERIES[1 + place % (len(_SERIES) - 1)], labelled=False)
        yardsticks = [row for row in evaluation.rows if row.kind == "yardstick" and row.match_l2 is not None]
        for row, marker in zip(yardsticks, _MARKERS, strict=False):
            x, y = _point(row, largest)
            axes.plot(x, y, marker, color=_SOFT, markersize=7, linestyle="none", label=row.name)
        legend = axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=_INK, fontsize=10)
        legend.set_zorder(1)
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for color, variable in _THEME.items():
        svg = svg.replace(color, variable)
    label = f"recall at {largest} against L2 topic match"
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _draw_model(axes: Axes, evaluation: Evaluation, largest: int, color: str, *, labelled: bool) -> None:
    sweep = [row for row in evaluation.sweep() if row.match_l2 is not None]
    if sweep:
        points = [_point(row, largest) for row in sweep]
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.6, marker="o", markersize=4, alpha=0.9)
        for row, point in zip(sweep, points, strict=True):
            if labelled and row.alpha is not None:
                axes.annotate(f"{row.alpha:g}", point, (7, -13), textcoords="offset points", color=_SOFT, fontsize=9)
    merged = evaluation.merged
    if merged.match_l2 is None:
        return
    x, y = _point(merged, largest)
    axes.errorbar(x, y, xerr=_bars(merged.match_l2), yerr=_bars(merged.recall[largest]), color=color, linewidth=1)
    name = evaluation.model + (f", alpha = {merged.alpha:g}" if merged.alpha is not None else "")
    axes.plot(
        x, y, "o", color=color, markerfacecolor="none" if sweep else color, markersize=12 if sweep else 8,
        markeredgewidth=2, linestyle="none", label=name,
    )  # fmt: skip


def _point(row: Row, largest: int) -> tuple[float, float]:
    assert row.match_l2 is not None
    return 100 * row.match_l2.value, 100 * row.recall[largest].value


def _bars(figure: Estimate) -> list[list[float]]:
    return [[100 * max(0.0, figure.value - figure.low)], [100 * max(0.0, figure.high - figure.value)]]
