"""An evaluation beside others: the best yardstick at each cut-off, and other models with what differs in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmh.config.base import leaves
from mtmh.evaluation.measure import Measure
from mtmh.evaluation.metrics import Bootstrap
from mtmh.evaluation.results import Against, Difference, Evaluation, load_evaluation
from mtmh.evaluation.user_values import UserValues

# Sections that say nothing about how a model was made or what it answers.
_APART = ("name", "description", "paths", "service", "chain", "plan")


def against_yardsticks(measure: Measure) -> list[Against]:
    """The merged row against the yardstick of largest recall, at every cut-off."""
    yardsticks = [place for place, row in enumerate(measure.rows) if row.kind == "yardstick"]
    merged = next(place for place, row in enumerate(measure.rows) if row.kind == "merged")
    found = []
    for k in measure.rows[merged].recall if yardsticks else ():
        best = max(yardsticks, key=lambda place: measure.rows[place].recall[k].value)
        difference = measure.values[merged].recall_above(measure.values[best], k, measure.bootstrap)
        found.append(Against(recall_at=k, yardstick=measure.rows[best].name, difference=difference))
    return found


def load_comparable(path: Path, found: Evaluation) -> Evaluation:
    """Another model's evaluation.

    Raises:
        ValueError: of another dataset or by another protocol.
    """
    other = load_evaluation(path)
    if other.dataset_digest != found.dataset_digest:
        raise ValueError(f"{path}: evaluated on another dataset ({other.dataset}, digest {other.dataset_digest[:12]})")
    if other.protocol != found.protocol:
        raise ValueError(f"{path}: evaluated by another protocol ({other.protocol}), here it is {found.protocol}")
    return other


def difference(
    values: UserValues,
    other: UserValues,
    seed: int,
    steps: tuple[int | None, int | None],
    settings: Sequence[Mapping[str, Any]],
) -> Difference | None:
    """The first model minus the second, on shared users; None if there are none.

    Args:
        values: of the users of the first.
        other: of those of the second.
        seed: of the bootstrap.
        steps: of training of both.
        settings: recipes of both.
    """
    shared, rows, other_rows = np.intersect1d(values.user_index, other.user_index, return_indices=True)
    if len(shared) == 0:
        return None
    values, other = values.select(rows), other.select(other_rows)
    bootstrap = Bootstrap(len(shared), seed=seed)
    return Difference(
        num_users=len(shared),
        recall={k: values.recall_above(other, k, bootstrap) for k in values.recall},
        match_l2=bootstrap.difference(values.l2, other.l2),
        steps=steps,
        settings=differing(*settings),
    )


def differing(settings: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings of two recipes that are not equal, by dotted key; a list is one value, what is missing is None."""
    flat, flat_other = ({key: value for key, value in leaves(recipe) if key.split(".")[0] not in _APART}
                        for recipe in (settings, other))  # fmt: skip
    keys = dict.fromkeys([*flat, *flat_other])
    return {key: (flat.get(key), flat_other.get(key)) for key in keys if flat.get(key) != flat_other.get(key)}
