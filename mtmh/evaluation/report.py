"""The report of an evaluation: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from mtmh.evaluation.metrics import Estimate
from mtmh.evaluation.report_parts import (
    curve_part,
    figures_table,
    origin_facts,
    setting,
    signed,
    training_part,
)
from mtmh.evaluation.results import Difference, Evaluation, Example, Row, ShownItem
from mtmh.evaluation.tables import columns, figures, percent
from mtmh.evaluation.verdict import verdict
from mtmh.pages.page import callout, cell, facts, note, page, pairs, row, section, table

_OPEN = 3  # examples that are unfolded
PERCENT = "Percent; the small line is half the width of the 95 % interval."
# Rankers by the names of their settings.
_RANKED_BY = {
    "head-score": "similarity to the trigger",
    "history": "similarity to the user's history",
    "learned": "the model of train-preranker",
}


def write_report(evaluation: Evaluation, others: Sequence[Evaluation], path: Path) -> None:
    """Writes the report of a model, with other models beside it."""
    path.write_text(report_page(evaluation, others), encoding="utf-8")


def report_page(evaluation: Evaluation, others: Sequence[Evaluation] = ()) -> str:
    """The report as HTML."""
    return page(
        f"{evaluation.model} on {evaluation.dataset}",
        _verdict(evaluation),
        _facts(evaluation),
        section("Recall and relevance", curve_part([evaluation, *others])),
        section("Results", note(PERCENT), _results(evaluation, others)),
        _examples(evaluation.examples),
        _comparison(evaluation),
        training_part([evaluation, *others]),
        section("NDCG, hit rate and fresh items", _more(evaluation, others)),
        section("Where it comes from", pairs(origin_facts(evaluation.origin) | _settings(evaluation))),
        explanations(evaluation),
        subtitle=_subtitle(evaluation),
    )


def explanations(evaluation: Evaluation) -> str:
    """Definitions of the words in the tables."""
    text = (resources.files("mtmh.evaluation") / "explanations.html").read_text(encoding="utf-8")
    seen = evaluation.protocol.exclude_seen
    return Template(text).substitute(
        k=str(evaluation.protocol.k),
        seen="Items of the training history are neither answers nor ground truth."
        if seen
        else "Items of the training history count like any other.",
    )


def _subtitle(evaluation: Evaluation) -> str:
    counts = (
        f"{evaluation.num_users:,} users, {evaluation.num_pairs:,} user triggers,"
        f" {evaluation.num_items:,} items in the catalogue."
    )
    return f"{evaluation.description} {counts}".strip()


def _verdict(evaluation: Evaluation) -> str:
    first, *more = [*verdict(evaluation), *(f"Note: {note}." for note in evaluation.notes)]
    sides = {found.side for found in evaluation.against}
    return callout(first, more, "good" if sides == {"ahead"} else "bad" if sides == {"behind"} else "")


def _facts(evaluation: Evaluation) -> str:
    merged, largest = evaluation.merged, evaluation.protocol.recall_at[-1]
    found = {f"recall@{largest}": f"{percent(merged.recall[largest])} %"}
    for match, name in ((merged.match_l1, "L1 topic match"), (merged.match_l2, "L2 topic match")):
        if match is not None:
            found[name] = f"{percent(match)} %"
    found["catalogue coverage"] = f"{percent(merged.coverage)} %"
    if merged.alpha is not None:
        found["alpha: engagement head's share"] = f"{merged.alpha:g} %"
    return facts(found)


def _groups(evaluation: Evaluation, others: Sequence[Evaluation]) -> list[list[Row]]:
    """The rows of the tables, a rule between the groups."""
    beside = [found for other in others for found in (other.merged, *other.of_kind("exact")[:1])]
    return [
        evaluation.of_kind("merged", "head", "own-score", "preranking", "published"),
        evaluation.of_kind("exact"),
        beside,
        evaluation.of_kind("yardstick"),
        evaluation.of_kind("candidates"),
        evaluation.of_kind("alpha"),
    ]


def _results(evaluation: Evaluation, others: Sequence[Evaluation]) -> str:
    groups = [[(found.name, found, figures(found)) for found in group] for group in _groups(evaluation, others)]
    return figures_table(columns(evaluation.protocol.recall_at), groups)


def _more(evaluation: Evaluation, others: Sequence[Evaluation]) -> str:
    """NDCG, hit rate and recall of fresh items by cut-off, and the share of fresh items in the lists."""
    ks = evaluation.protocol.recall_at
    fresh = evaluation.merged.fresh_recall[ks[-1]] is not None
    headings = [f"{name}@{k}" for name in ("NDCG", "hit rate", *(["fresh recall"] if fresh else [])) for k in ks]

    def shown(found: Row) -> list[Estimate | float | None]:
        by_cut_off = [*found.ndcg.values(), *found.hit_rate.values()]
        return [*by_cut_off, *(found.fresh_recall.values() if fresh else []), found.fresh]

    groups = [[(found.name, found, shown(found)) for found in group] for group in _groups(evaluation, others)]
    return figures_table([*headings, "fresh share"], groups)


def _examples(examples: Sequence[Example]) -> str:
    """Triggers with the answers of both heads and of the merge."""
    if not examples:
        return ""
    heads = list(examples[0].heads)
    initials = ", ".join(f"{head[0].upper()} = {head} head" for head in heads)
    words = "Popular items, chosen so that the heads differ and stay on topic; the figures above say how well it works."
    if any(found.trigger.topics for found in examples):
        words += " A number in green: of the trigger's own coarse topic."
    words += f" In the merge, {initials}." if len(heads) > 1 else ""
    shown = [_example(found, is_open=place < _OPEN) for place, found in enumerate(examples)]
    return section("Ten triggers" if len(examples) == 10 else "Triggers", note(words), *shown)


def _example(example: Example, *, is_open: bool) -> str:
    lists = [(f"{head} head", found, False) for head, found in example.heads.items()]
    if example.merged:
        lists.append(("merged", example.merged, True))
    heads = list(example.heads)
    shown = []
    for name, found, initial in lists:
        answers = "".join(_answer(item, heads if initial else []) for item in found)
        shown.append(f"<div><h4>{escape(name)}</h4><ol>{answers}</ol></div>")
    summary = f"<summary>{_described(example.trigger)}</summary>"
    return f'<details{" open" if is_open else ""}>{summary}<div class="lists">{"".join(shown)}</div></details>'


def _answer(item: ShownItem, heads: Sequence[str]) -> str:
    """An answer; ``heads``: all there are, to name the one that brought it; empty: it goes without saying."""
    mark = ' class="own"' if item.own_topic else ""
    other = ' class="other"' if item.head in heads[1:] else ""
    initial = f"<b{other}>{escape(item.head[:1].upper())}</b> " if heads else ""
    return f"<li{mark}>{initial}{_described(item)}</li>"


def _described(item: ShownItem) -> str:
    text = item.text if len(item.text) <= 90 else f"{item.text[:89]}…"
    topics = " / ".join(item.topics)
    name = escape(text or f"item {item.item}")
    return f"{name} <span>{escape(topics)}</span>" if topics else name


def _comparison(evaluation: Evaluation) -> str:
    return section(
        "Differences to other models",
        differences_part(evaluation.model, evaluation.protocol.recall_at, evaluation.differences),
        *(_making(evaluation.model, model, found) for model, found in evaluation.differences.items()),
    )


def differences_part(model: str, recall_at: Sequence[int], differences: dict[str, Difference]) -> str:
    """A table of a model minus others, paired by user; nothing if no other shares users with it."""
    if not differences:
        return ""
    rows = [
        row([
            cell(f"{model} − {other}"), cell(f"{found.num_users:,}"),
            *(signed(found.recall[k]) for k in recall_at), signed(found.match_l2),
        ])
        for other, found in differences.items()
    ]  # fmt: skip
    words = (
        "Merged answers, percentage points, paired by user, with the 95 % interval. An interval without 0 is a"
        " difference that another sample of users would very likely show as well."
    )
    headings = ["", "shared users", *(f"recall@{k}" for k in recall_at), "L2 match"]
    return note(words) + table(headings, rows, "numbers")


def _making(model: str, other: str, found: Difference) -> str:
    """Steps and settings in which two models differ."""
    differs = {"steps of training": found.steps} if found.steps[0] != found.steps[1] else {}
    differs |= found.settings
    if not differs:
        return note(f"{model} and {other} have the same settings and steps.")
    rows = [row([cell(key), *(cell(setting(value)) for value in values)]) for key, values in differs.items()]
    heading = f"<h3>What differs between {escape(model)} and {escape(other)}</h3>"
    return heading + table(["", model, other], rows, "short")


def _settings(evaluation: Evaluation) -> dict[str, str]:
    protocol = evaluation.protocol
    without = evaluation.num_users_without_truth
    left_out = f" ({without:,} of the sample left out: no new item in the test period)" if without else ""
    return {
        "dataset digest": evaluation.dataset_digest[:16],
        "users": f"{evaluation.num_users:,}{left_out}",
        "triggers a user": f"the last {protocol.num_triggers} distinct items of the training history",
        "candidates a trigger and head (k_ann)": f"{evaluation.k_ann:,}",
        "clusters searched (num_probes)": f"{evaluation.num_probes:,}",
        "each head's best are kept by": _RANKED_BY.get(evaluation.preranker, evaluation.preranker),
        "a user's list is sorted by": _RANKED_BY.get(evaluation.sorter, evaluation.sorter),
        "kept a trigger (K)": str(protocol.k),
        "share of the engagement head (alpha)": f"{evaluation.alpha:g} %"
        if evaluation.merged.alpha is not None
        else "–",
        "list of a user": f"{protocol.recall_at[-1]} items at most, {evaluation.merged.list_length:.0f} on average",
        "seed": str(evaluation.seed),
    }
