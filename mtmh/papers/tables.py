"""The papers' tables beside ours, as rows of text, and the points of their figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from mtmh.evaluation.metrics import Estimate
from mtmh.papers.adaptive import AdaptiveAlpha
from mtmh.papers.convergence import Drift
from mtmh.papers.figures import Measured
from mtmh.papers.intervals import Interval, cell
from mtmh.papers.models import (
    BASELINES,
    CONTENT,
    DEFAULTS,
    LEARNED_WEIGHTS,
    MIXTURE,
    MTMH,
    MULTIMODAL_WEIGHT,
    NEXT_ITEM,
    PROPENSITIES,
    SEMANTIC_WEIGHTS,
    Modality,
    Part,
    input_name,
    semantic_name,
    weight_name,
)
from mtmh.papers.published import (
    CO_ENGAGEMENT,
    COLUMNS,
    FIGURE_1,
    H1,
    H2,
    LEAVE_ONE_OUT,
    RELATED_1,
    RELATED_2,
    RELATED_3,
    SHARED,
    TABLE_1,
    TABLE_2,
    TABLE_4,
)

LENGTH = "items a list"
YARDSTICKS = ("item-item cosine", "EASE", "implicit ALS", "content (teacher)", "popularity")


@dataclass(frozen=True)
class Table:
    """A table of the papers beside ours; lines of the paper and of ours take turns.

    Attributes:
        part: of the page.
        title: for people.
        headings: of the columns behind the first.
        lines: the cells of each line, the name first.
        commands: that measured our lines.
    """

    part: Part
    title: str
    headings: Sequence[str]
    lines: list[list[str]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Curve:
    """Points of a figure under one name: (x, y) with half intervals; a curve of one point is a mark."""

    name: str
    x: list[Interval]
    y: list[Interval]
    labels: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Figure:
    """A figure of the papers, drawn from our measurements.

    Attributes:
        part: of the page.
        title: for people.
        axes: names of x and y.
        curves: of it.
        log_x: whether x is a cut-off, on a logarithmic axis.
    """

    part: Part
    title: str
    axes: tuple[str, str]
    curves: list[Curve]
    log_x: bool = False


def make_tables(rows: Mapping[str, Measured], parts: Sequence[Part]) -> list[Table]:
    """The tables of some parts, as far as they are measured."""
    makers: dict[Part, Callable[[Mapping[str, Measured]], Table]] = {
        "table1": _table_1,
        "table2": _table_2,
        "table4": _table_4,
        "figure1": _figure_1,
        "figure7": _figure_7,
        "table5": _table_5,
        "related1": _related_1,
        "related2": _related_2,
        "related3": _related_3,
        NEXT_ITEM: _leave_one_out,
    }
    tables = [makers[part](rows) for part in parts if part in makers]
    return [table for table in tables if table.commands]


def make_figures(rows: Mapping[str, Measured], parts: Sequence[Part]) -> list[Figure]:
    """The figures of some parts, as far as they are measured."""
    makers: dict[Part, Callable[[Mapping[str, Measured]], list[Figure]]] = {
        "figure1": _drawing_1,
        "figure2": _drawings_2,
        "figure6": _drawings_6,
    }
    figures = [figure for part in parts if part in makers for figure in makers[part](rows)]
    return [figure for figure in figures if figure.curves]


def _beside(
    table: Table, rows: Mapping[str, Measured], names: Sequence[str], paper: Mapping[str, Sequence[float]]
) -> None:
    """Adds the paper's line of each name, and ours."""
    for name in names:
        if name in paper:
            figures = [f"{figure:.2f}" for figure in paper[name]]
            table.lines.append([f"{name}, paper", *figures, *["–"] * (len(table.headings) - len(figures))])
        if name in rows:
            own = rows[name]
            table.lines.append([f"{name}, here", *(_figure(own, column) for column in table.headings)])
            _add_command(table, own)


def _add_command(table: Table, own: Measured) -> None:
    if own.command not in table.commands:
        table.commands.append(own.command)


def _figure(own: Measured, column: str) -> str:
    return f"{own.list_length:.0f}" if column == LENGTH else _shown(own.interval(column))


def _shown(interval: Interval | None) -> str:
    return "–" if interval is None else str(interval)


def _table_1(rows: Mapping[str, Measured]) -> Table:
    table = Table("table1", "Table 1: MTMH and baselines", (*COLUMNS, LENGTH))
    _beside(table, rows, [*BASELINES, "SASRec", MIXTURE, MTMH, DEFAULTS, *YARDSTICKS], TABLE_1)
    return table


def _table_2(rows: Mapping[str, Measured]) -> Table:
    table = Table("table2", "Table 2: what heads and losses do", (*COLUMNS, LENGTH))
    _beside(table, rows, [MTMH, H1, H2, "MTSH", "STMH", SHARED], TABLE_2)
    return table


def _table_4(rows: Mapping[str, Measured]) -> Table:
    """Changes against w_r = 0.5, relative to it."""
    columns = ("recall@500", "L1 match", "L2 match")
    table = Table("table4", "Table 4: the weight of the relevance loss, relative to w_r = 0.5", columns)
    base = rows.get(MTMH)
    for name, paper in TABLE_4.items():
        if base is None or name not in rows:
            continue
        table.lines.append([f"{name}, paper", *(f"{figure:+.2f} %" for figure in paper)])
        table.lines.append([f"{name}, here", *(_relative(rows[name], base, column) for column in columns)])
        _add_command(table, rows[name])
    for name in LEARNED_WEIGHTS:
        if base is not None and name in rows:
            table.lines.append([f"{name}, here", *(_relative(rows[name], base, column) for column in columns)])
            _add_command(table, rows[name])
    if table.commands and base is not None:
        table.lines.append([f"{weight_name(0.5)}, w_r = 0.5, here", *(_shown(base.interval(c)) for c in columns)])
        _add_command(table, base)
    return table


def _relative(own: Measured, base: Measured, column: str) -> str:
    difference, whole = own.above(base, column), base.interval(column)
    if difference is None or whole is None or whole.value == 0.0:
        return "–"
    return f"{100 * difference.value / whole.value:+.2f} ±{100 * difference.half / whole.value:.2f} %"


def _figure_1(rows: Mapping[str, Measured]) -> Table:
    table = Table("figure1", "Figure 1: co-engagement, content and both", ("recall@500", "L2 match"))
    named = {CO_ENGAGEMENT: "NeuCF", CONTENT: CONTENT, MTMH: MTMH}
    known = {label: rows[name] for label, name in named.items() if name in rows}
    _beside(table, known, list(named), FIGURE_1)
    return table


def _table_5(rows: Mapping[str, Measured]) -> Table:
    columns = ("coverage", "young", "novel interests@20", "interests@20", "diversity@20")
    table = Table("table5", "Table 5 offline: what a list does for users, in place of its online figures", columns)
    _beside(table, rows, [*BASELINES, H1, H2, MTMH, *YARDSTICKS], {})
    return table


def _figure_7(rows: Mapping[str, Measured]) -> Table:
    columns = ("fresh recall@20", "fresh recall@100", "fresh recall@500")
    table = Table("figure7", "Figure 7: what is found of the items without a training event, by head", columns)
    _beside(table, rows, [MTMH, H1, H2, "NeuCF"], {})
    return table


def drawing_7(drifts: Mapping[str, Sequence[Sequence[Drift]]]) -> Figure:
    """Distance to the final embedding by number of updates, of the first seed.

    Args:
        drifts: model -> seeds -> heads.
    """
    curves = []
    for model, of_seeds in drifts.items():
        for of_head in of_seeds[0]:
            name = model if len(of_seeds[0]) == 1 else f"{model}, {of_head.head} head"
            x = [Interval(value=max(updates, 0.5) / 100, half=0.0, num_seeds=1) for updates in of_head.updates]
            y = [
                Interval(value=distance / 100, half=half / 100, num_seeds=1)
                for distance, half in zip(of_head.distance, of_head.half, strict=True)
            ]
            curves.append(Curve(name, x, y))
    axes = ("updates so far", "L2 distance to the last step's embedding")
    return Figure("figure7", "Figure 7: items with few events, first seed", axes, curves, log_x=True)


def adaptive_tables(found: Sequence[AdaptiveAlpha], commands: Sequence[str]) -> list[Table]:
    """An alpha for each user beside fixed ones; of seeds, no table without any."""
    if not found:
        return []
    table = Table(
        "adaptive", "An alpha for each user, fitted on the end of T1", (f"recall@{found[0].recall_at}", "L2 match")
    )
    table.commands.extend(commands)

    def add(name: str, recall: Sequence[Estimate], match: Sequence[Estimate]) -> None:
        table.lines.append([f"{name}, here", cell(recall), cell(match)])

    for alpha in found[0].fixed:
        add(f"alpha = {alpha:g} for all", *zip(*(f.fixed[alpha] for f in found), strict=True))
    match = [f.match for f in found]
    add("an alpha for each user", [f.recall for f in found], match)
    add("the best alpha of each user in hindsight", [f.oracle for f in found], match)
    return [table]


def _related_1(rows: Mapping[str, Measured]) -> Table:
    title = "Related-video paper, table I: co-engagement to semantic weight, ours times 1/1000"
    table = Table("related1", title, ("recall@100", "L2 match", "recall@500", "popular", "L1 match"))
    _beside(table, rows, ["NeuCF", *map(semantic_name, SEMANTIC_WEIGHTS), "MTSH"], RELATED_1)
    return _of_one_width(table)


def _related_2(rows: Mapping[str, Measured]) -> Table:
    title = "Related-video paper, table II: text and pictures as inputs beside the semantic task"
    table = Table("related2", title, ("recall@100", "L2 match", "recall@500", "popular"))
    names = [semantic_name(MULTIMODAL_WEIGHT), *map(input_name, get_args(Modality))]
    _beside(table, rows, names, RELATED_2)
    return _of_one_width(table)


def _related_3(rows: Mapping[str, Measured]) -> Table:
    title = "Related-video paper, table III: L2 match by popularity of the trigger, under propensity weights"
    columns = ("bottom triggers", "middle triggers", "top triggers", "recall@500", "popular")
    table = Table("related3", title, columns)
    _beside(table, rows, [MTMH, *PROPENSITIES], RELATED_3)
    return _of_one_width(table)


def _of_one_width(table: Table) -> Table:
    """The table with empty cells where a paper has fewer columns."""
    width = 1 + len(table.headings)
    return replace(table, lines=[line + [""] * (width - len(line)) for line in table.lines])


def _leave_one_out(rows: Mapping[str, Measured]) -> Table:
    columns = ("recall@10", "ndcg@10")
    table = Table(NEXT_ITEM, "The next item of each user, full ranking: published figures and ours", columns)
    _beside(table, rows, [*LEAVE_ONE_OUT, DEFAULTS], LEAVE_ONE_OUT)
    return table


def _points(measured: Measured) -> tuple[Interval, Interval] | None:
    match, recall = measured.interval("L2 match"), measured.interval("recall@500")
    return None if match is None or recall is None else (match, recall)


def _marks(rows: Mapping[str, Measured], names: Sequence[str]) -> Iterator[Curve]:
    for name in names:
        point = _points(rows[name]) if name in rows else None
        if point is not None:
            yield Curve(name, [point[0]], [point[1]])


_AXES = ("L2 topic match, percent", "recall@500, percent")


def _drawing_1(rows: Mapping[str, Measured]) -> list[Figure]:
    return [Figure("figure1", "Figure 1", _AXES, list(_marks(rows, ["NeuCF", CONTENT, MTMH])))]


def _drawings_2(rows: Mapping[str, Measured]) -> list[Figure]:
    """2a and 2b: match and recall over the length of the list; the merge, which 2c sketches, is drawn beside."""
    found = []
    for letter, column, name in (("a", "match", "L2 topic match"), ("b", "recall", "recall")):
        curves = []
        for model in ("NeuCF", "MTSH", MTMH):
            if model not in rows:
                continue
            cut_offs = sorted(rows[model].rows[0].recall)
            values = {k: rows[model].interval(f"{column}@{k}") for k in cut_offs}
            known = {k: value for k, value in values.items() if value is not None}
            if known:
                x = [Interval(value=k / 100, half=0.0, num_seeds=1) for k in known]
                curves.append(Curve(model, x, list(known.values())))
        found.append(
            Figure("figure2", f"Figure 2{letter}", ("items of the list, K", f"{name}, percent"), curves, log_x=True)
        )
    return found


def _drawings_6(rows: Mapping[str, Measured]) -> list[Figure]:
    sweep = {}
    for name, measured in rows.items():
        alpha = name.removeprefix(f"{MTMH}, alpha = ")
        point = _points(measured)
        if alpha != name and point is not None:
            sweep[float(alpha)] = point
    curve = Curve(
        MTMH,
        [sweep[a][0] for a in sorted(sweep)],
        [sweep[a][1] for a in sorted(sweep)],
        [f"{a:g}" for a in sorted(sweep)],
    )
    marks = list(_marks(rows, [*BASELINES, "MTSH", "STMH", MTMH]))
    return [
        Figure("figure6", "Figure 6a: all models, alpha = 50", _AXES, marks),
        Figure("figure6", "Figure 6b: MTMH by alpha", _AXES, [curve] if sweep else []),
    ]
