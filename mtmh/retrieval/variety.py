"""Answers of one list under caps and with diversity, chosen one after the other (quota merge otherwise: `merge`).

The rule, for K answers and one quota a head: heads take turns in their order until their quotas are full, then they go
on in the same order until K items are taken. A head takes the best of its candidates that is not taken and breaks no
cap. The best: of the largest ``(1 - diversity) * rank score - diversity * cosine``, where the rank score is the
candidate's score, stretched to 0 .. 1 over the head's candidates, and the cosine is the largest one to an item taken
before, by any head, and 0 at least (maximal marginal relevance). Without diversity the best is the next one in the
head's order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Floats, Mask, Scores, Vectors
from mtmh.data.item_vectors import ItemVectors
from mtmh.retrieval.catalogue import Catalogue
from mtmh.retrieval.item_column import Value
from mtmh.retrieval.ranking import USER, Candidates, Ranker, Requests
from mtmh.retrieval.user_list import UserList, first_found, first_places, scored

TRIGGER = "trigger"  # among the columns of caps: the trigger that an answer answers


@dataclass(frozen=True)
class Pool:
    """Candidates of one head, distinct, best first.

    Attributes:
        items: [N] item indices.
        scores: [N] float32, by which they are in order.
        triggers: [N] item indices, of what each answers.
    """

    items: npt.NDArray[np.int64]
    scores: Floats
    triggers: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Variety:
    """What a request asks of a list as a whole.

    Attributes:
        max_per: column, or ``trigger`` -> answers with one value of it, at most; an item with several values counts for
            each, one without any for none.
        diversity: 0 .. 1; 0: the order of the scores alone.
    """

    max_per: Mapping[str, int] = field(default_factory=dict)
    diversity: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.max_per) or self.diversity > 0.0

    @property
    def column_caps(self) -> dict[str, int]:
        """The caps of columns of the items."""
        return {name: most for name, most in self.max_per.items() if name != TRIGGER}


def varied_list(
    requests: Requests,
    kept: Sequence[Candidates],
    rankings: Sequence[Scores],
    quotas: Sequence[int],
    sorter: Ranker,
    variety: Variety,
    catalogue: Catalogue,
    vectors: ItemVectors,
) -> UserList:
    """As `user_list`, but chosen by the rule above; grouped by head, each head's in the order in which it took them.

    An item that several triggers brought answers the one that ranks it best, or is most similar to it.
    """
    pools: list[Pool] = []
    brought: list[tuple[npt.NDArray[np.int8], npt.NDArray[np.intp]]] = []
    widths = np.array([candidates.items.shape[1] for candidates in kept])
    for head, (candidates, ranking) in enumerate(zip(kept, rankings, strict=True)):
        places = _best_places(candidates, ranking)
        items, heads = candidates.items.ravel()[places].astype(np.int64), np.full(len(places), head, np.int8)
        scores = ranking.ravel()[places]
        if candidates.head == USER and len(kept) > 1:
            heads, places = first_found(items, heads, places, kept)
        pools.append(Pool(items, scores, requests.triggers[places // widths[heads]]))
        brought.append((heads, places))
    chosen = choose(pools, quotas, variety, catalogue, vectors)
    chosen.sort(key=lambda pick: pick[0])  # stable: the order of a head stays
    return scored(
        requests,
        kept,
        np.array([pools[head].items[place] for head, place in chosen], np.int64),
        np.array([brought[head][0][place] for head, place in chosen], np.int8),
        np.array([brought[head][1][place] for head, place in chosen], np.intp),
        sorter,
    )


def choose(
    pools: Sequence[Pool], quotas: Sequence[int], variety: Variety, catalogue: Catalogue, vectors: ItemVectors
) -> list[tuple[int, int]]:
    """Chooses by the rule above.

    Args:
        pools: candidates of each head.
        quotas: answers of each head; K in all.
        variety: caps and diversity.
        catalogue: for the columns of the caps.
        vectors: [I + F, D] by which items are alike.

    Returns:
        Head and place in its pool of each answer, in the order in which they were taken.
    """
    sides = [_Side(pool, variety, catalogue, vectors) for pool in pools]
    counts: Counter[tuple[str, Value]] = Counter()
    chosen: list[tuple[int, int]] = []

    def take(head: int, count: int) -> None:
        while count > 0 and (place := sides[head].best()) is not None:
            chosen.append((head, place))
            count -= 1
            taken = sides[head]
            counts.update(taken.values[place])
            full = {value for value in taken.values[place] if counts[value] >= variety.max_per[value[0]]}
            for side in sides:
                side.note(int(taken.pool.items[place]), full)

    for head, quota in enumerate(quotas):
        take(head, quota)
    for head in range(len(quotas)):
        take(head, sum(quotas) - len(chosen))
    return chosen


def full_values(candidates: Candidates, variety: Variety, catalogue: Catalogue, k: int) -> dict[str, list[Value]]:
    """The values of columns that are at their caps before a head alone has found K answers; empty: it finds them."""
    places = _best_places(candidates, candidates.scores)
    items = candidates.items.ravel()[places].astype(np.int64)
    pool = Pool(items, candidates.scores.ravel()[places], items)
    columns = variety.column_caps
    counts: Counter[tuple[str, Value]] = Counter()
    found = 0
    for values in _values(pool, columns, catalogue):
        if all(counts[value] < columns[value[0]] for value in values):
            counts.update(values)
            found += 1
        if found == k:
            return {}
    return {
        name: [value for (of_name, value), count in counts.items() if of_name == name and count >= most]
        for name, most in columns.items()
    }


def _best_places(candidates: Candidates, ranking: Scores) -> npt.NDArray[np.intp]:
    """Places, in the flattened candidates, of the distinct items, best first by ranking, then by similarity."""
    return first_places(candidates.items.ravel(), np.lexsort((-candidates.scores.ravel(), -ranking.ravel())))


class _Side:
    """The candidates of one head while answers are taken."""

    def __init__(self, pool: Pool, variety: Variety, catalogue: Catalogue, vectors: ItemVectors) -> None:
        self.pool = pool
        self.values = _values(pool, variety.max_per, catalogue)
        self._free: Mask = np.ones(len(pool.items), bool)
        self._places: dict[tuple[str, Value], list[int]] = {}
        for place, values in enumerate(self.values):
            for value in values:
                self._places.setdefault(value, []).append(place)
        self._diversity = np.float32(variety.diversity)
        self._vectors = vectors
        self._own: Vectors | None = vectors[pool.items] if variety.diversity else None
        self._nearest = np.zeros(len(pool.items), np.float32)
        low, high = (pool.scores.min(), pool.scores.max()) if len(pool.items) else (0.0, 0.0)
        self._ranks = (pool.scores - low) / (high - low) if high > low else np.ones(len(pool.items), np.float32)

    def best(self) -> int | None:
        """The place to take next; None: there is none."""
        if not self._free.any():
            return None
        if self._own is None:
            return int(self._free.argmax())
        worth = (1 - self._diversity) * self._ranks - self._diversity * self._nearest
        return int(np.where(self._free, worth, -np.inf).argmax())

    def note(self, item: int, full: set[tuple[str, Value]]) -> None:
        """Leaves out an item that was taken, and all with values that are at their caps."""
        self._free[self.pool.items == item] = False
        for value in full:
            self._free[self._places.get(value, [])] = False
        if self._own is not None:
            self._nearest = np.maximum(self._nearest, self._own @ self._vectors[np.array([item])][0])


def _values(pool: Pool, names: Mapping[str, int], catalogue: Catalogue) -> list[list[tuple[str, Value]]]:
    """What each candidate of a pool counts for: name and value of all that have a cap."""
    found: list[list[tuple[str, Value]]] = [[] for _ in pool.items]
    for name in names:
        if name == TRIGGER:
            values = pool.triggers.tolist()
        else:
            catalogue.column(name, f"max_per.{name}")
            values = catalogue.columns(pool.items, [name]).column(name).to_pylist()
        for counted, value in zip(found, values, strict=True):
            several = value if isinstance(value, list) else [value]
            counted += dict.fromkeys((name, single) for single in several if single is not None)
    return found
