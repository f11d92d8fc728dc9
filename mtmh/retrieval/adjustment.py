"""Factors on the scores of candidates: boosts of a request, and how far candidates are from items to move away from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtmh.data.arrays import Floats, Indices, Mask, Scores
from mtmh.data.item_vectors import ItemVectors
from mtmh.errors import RequestError
from mtmh.retrieval.catalogue import Catalogue
from mtmh.retrieval.item_column import ItemColumn, Value
from mtmh.retrieval.ranking import Candidates, Ranker, Requests, UserSource

Boosts = Mapping[str, Mapping[Value, float]]

_LEAST = np.float32(1e-6)  # a negative score is divided by the factor
_MORE = 4  # times as many candidates of a user, among which the factors choose


@dataclass(frozen=True)
class Adjustment:
    """The factors of one request.

    Attributes:
        catalogue: whose items the candidates are.
        vectors: [I + F, D] by which items are alike.
        boosts: column -> value -> factor; the factors of all values of an item are multiplied.
        away_from: item indices; a candidate's factor is 1 less its largest cosine to one of these, and 1 if that is
            negative.
    """

    catalogue: Catalogue
    vectors: ItemVectors
    boosts: Boosts
    away_from: Indices

    def of(self, items: Indices) -> Floats:
        """[...] factors of items [...]; 1 for -1.

        Raises:
            RequestError: boosts of a column that is not there, or of values of another type than the column's.
        """
        distinct, place = np.unique(items, return_inverse=True)
        present = np.maximum(distinct, 0)
        factors = np.ones(len(distinct), np.float32)
        for name, by_value in self.boosts.items():
            field = f"boosts.{name}"
            kind = self.catalogue.column(name, field)
            column = ItemColumn(self.catalogue.columns(present, [name]).column(name))
            for value, factor in by_value.items():
                factors[column.meets(_typed(value, kind), field)] *= np.float32(factor)
        if len(self.away_from):
            cosines = self.vectors[present] @ self.vectors[self.away_from].T
            factors *= 1.0 - np.clip(cosines.max(axis=1), 0.0, 1.0)
        factors[distinct < 0] = 1.0
        found: Floats = factors[place].reshape(items.shape)
        return found


class Adjusted:
    """A ranker whose scores are multiplied by the factors of a request; negative ones are divided by them."""

    def __init__(self, ranker: Ranker, adjustment: Adjustment) -> None:
        self._ranker = ranker
        self._adjustment = adjustment

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        """As ``Ranker.score``."""
        scores = self._ranker.score(requests, candidates)
        factors = np.maximum(self._adjustment.of(candidates.items), _LEAST)
        return np.where(scores >= 0.0, scores * factors, scores / factors)


class AdjustedSource(Adjusted):
    """Likewise, over one that finds candidates for a user."""

    def __init__(self, source: UserSource, adjustment: Adjustment) -> None:
        super().__init__(source, adjustment)
        self._source = source

    def propose(
        self, requests: Requests, found: Sequence[Candidates], k: int, allowed: Mask | None
    ) -> tuple[Candidates, Ranker]:
        """As ``UserSource.propose``; some times ``k`` candidates, so that the factors have something to choose from."""
        proposed, judged = self._source.propose(requests, found, _MORE * k, allowed)
        return proposed, Adjusted(judged, self._adjustment)


def adjusted(ranker: Ranker, adjustment: Adjustment) -> Ranker:
    """The ranker under the factors of a request."""
    return (AdjustedSource if isinstance(ranker, UserSource) else Adjusted)(ranker, adjustment)  # type: ignore[arg-type]


def check_boosts(boosts: Boosts) -> None:
    """Checks that factors are factors.

    Raises:
        RequestError: one is not above 0.
    """
    for name, by_value in boosts.items():
        for value, factor in by_value.items():
            if not 0.0 < factor < float("inf"):
                raise RequestError(f"{value!r} is {factor}, expected a factor above 0", f"boosts.{name}")


def boost_notes(boosts: Boosts, catalogue: Catalogue) -> list[str]:
    """Boosted values that no item has, a line each."""
    found = []
    for name, by_value in boosts.items():
        kind = catalogue.column(name, f"boosts.{name}")
        found += catalogue.absent(name, [_typed(value, kind) for value in by_value], f"boosts.{name}")
    return found


def _typed(value: Value, column: ItemColumn) -> Value:
    """A value whose type the keys of JSON lost."""
    if column.is_text or not isinstance(value, str):
        return value
    try:
        return int(value) if column.is_whole else float(value)
    except ValueError:
        return value
