"""The verdict of an evaluation in words: where the model stands against the yardsticks, and what to try."""

from __future__ import annotations

from mtmh.evaluation.metrics import Estimate
from mtmh.evaluation.results import Against, Evaluation, Row

_FULL = 0.95  # share of a list below which it counts as short
_NOTABLE = 0.03  # relative gain in recall that is worth a sentence


def verdict(evaluation: Evaluation) -> list[str]:
    """Sentences: the outcome first, then each cut-off, topic match, the best alpha, and what to try."""
    hints = [f"Try: {hint}" for hint in _hints(evaluation)]
    return [*_outcome(evaluation), *_relevance(evaluation), *_best_alpha(evaluation), *hints]


def _outcome(evaluation: Evaluation) -> list[str]:
    if not evaluation.against:
        return ["No yardstick was measured: nothing says whether these figures are good."]
    sides: dict[str, list[int]] = {"ahead": [], "level": [], "behind": []}
    for found in evaluation.against:
        sides[found.side].append(found.recall_at)
    words = {"ahead": "ahead of", "level": "level with", "behind": "behind"}
    parts = [f"{words[side]} the best yardstick at {_cut_offs(ks)}" for side, ks in sides.items() if ks]
    if len(parts) == 1:
        parts = [parts[0].split(" at ")[0] + " at every cut-off"]
    return [
        f"{evaluation.model} is {', '.join(parts)}.",
        *(_at_cut_off(evaluation, found) for found in evaluation.against),
    ]


def _at_cut_off(evaluation: Evaluation, found: Against) -> str:
    recall = evaluation.merged.recall[found.recall_at].value
    yardstick = recall - found.difference.value
    relative = f"{found.difference.value / yardstick:+.0%} " if yardstick > 0 else ""
    return (
        f"recall@{found.recall_at}: {100 * recall:.2f} %, {found.yardstick} {100 * yardstick:.2f} %:"
        f" {relative}({_points(found.difference)} points)"
    )


def _relevance(evaluation: Evaluation) -> list[str]:
    match = evaluation.merged.match_l2
    counted = next((row for row in evaluation.of_kind("yardstick") if row.name == "item-item cosine"), None)
    if match is None or counted is None or counted.match_l2 is None:
        return []
    return [f"L2 topic match: {100 * match.value:.2f} %, item-item cosine {100 * counted.match_l2.value:.2f} %"]


def _best_alpha(evaluation: Evaluation) -> list[str]:
    """The merge of most recall, heads alone among them; of equal ones the recipe's."""
    sweep, largest = evaluation.sweep(), evaluation.protocol.recall_at[-1]
    if len(sweep) < 2:
        return []
    best = max(sweep, key=lambda row: (row.recall[largest].value, row.alpha == evaluation.alpha))
    return [
        f"Best alpha for recall@{largest}: {best.alpha:g}, {_alpha_figures(best, largest)}"
        + "".join(
            f"; the recipe's {row.alpha:g}: {_alpha_figures(row, largest)}"
            for row in sweep
            if row.alpha == evaluation.alpha != best.alpha
        )
    ]


def _alpha_figures(row: Row, largest: int) -> str:
    topic = "" if row.match_l2 is None else f" and L2 match {100 * row.match_l2.value:.2f} %"
    return f"{100 * row.recall[largest].value:.2f} %{topic}"


def _hints(evaluation: Evaluation) -> list[str]:
    """Advice on settings to try, by what the rows show."""
    merged, largest = evaluation.merged, evaluation.protocol.recall_at[-1]
    hints = []
    if merged.list_length < _FULL * largest:
        hints.append(
            f"a larger retrieval.k_ann or num_probes: lists of {largest} are {merged.list_length / largest:.0%} full."
        )
    exact = next(iter(evaluation.of_kind("exact")), None)
    if exact is not None and _gain(exact.recall[largest], merged.recall[largest]) > _NOTABLE:
        hints.append(f"a larger retrieval.num_probes: exact search has {_better(exact.recall[largest], largest)}.")
    for row in evaluation.of_kind("preranking"):
        least = evaluation.protocol.recall_at[min(1, len(evaluation.protocol.recall_at) - 1)]
        if "learned" in row.name and _gain(row.recall[least], merged.recall[least]) > _NOTABLE:
            hints.append(
                f"retrieval.sorter: learned, and build the index again: the row {row.name.split(', ', 1)[-1]!r} has"
                f" {_better(row.recall[least], least)}."
            )
            break
    best = max(evaluation.of_kind("merged", "alpha"), key=lambda row: row.recall[largest].value)
    if best.alpha is not None and _gain(best.recall[largest], merged.recall[largest]) > _NOTABLE:
        hints.append(f"retrieval.alpha: {best.alpha:g}, which has {_better(best.recall[largest], largest)}.")
    behind = [found for found in evaluation.against if found.side == "behind"]
    if behind and evaluation.sorter != "learned" and not evaluation.of_kind("preranking"):
        hints.append("mtmh train-preranker and retrieval.sorter: learned: similarity alone sorts the lists.")
    if behind:
        hints.append("longer training (training.epochs) or a higher learning rate: counting is still ahead.")
    return hints


def _gain(new: Estimate, old: Estimate) -> float:
    return new.value / old.value - 1.0 if old.value > 0 else float(new.value > 0)


def _better(recall: Estimate, k: int) -> str:
    return f"recall@{k} {100 * recall.value:.2f} %"


def _points(difference: Estimate) -> str:
    return f"{100 * difference.value:+.2f}, 95 % interval {100 * difference.low:+.2f} to {100 * difference.high:+.2f}"


def _cut_offs(ks: list[int]) -> str:
    return ", ".join(f"recall@{k}" for k in ks)
