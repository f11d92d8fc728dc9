"""A search that keeps what it found: users share triggers, and ask again for more candidates of the same ones."""

from __future__ import annotations

import numpy as np

from mtmh.data.arrays import Indices, row_type
from mtmh.evaluation.pipeline import Search
from mtmh.retrieval.ranking import Candidates

_MOST_CANDIDATES = 134_217_728  # kept (1 GiB of items and scores)


class RememberedSearch:
    """Answers as the search does; what is asked for again, with as many candidates or fewer, is looked up.

    Args:
        head: whose candidates they are.
        search: of that head.
        num_items: size of the catalogue.
    """

    def __init__(self, head: str, search: Search, num_items: int) -> None:
        self._head = head
        self._search = search
        self._num_items = num_items
        self._forget()

    def __call__(self, triggers: Indices, k: int, needed: int) -> Candidates:
        """As ``Search``."""
        if len(unknown := np.unique(triggers[self._reach[triggers] < k])):
            if len(unknown) * k + sum(part.items.size for part in self._parts) > _MOST_CANDIDATES:
                self._forget()
                unknown = np.unique(triggers)
            # For one candidate each: who needs more than it finds so searches further, see below.
            self._keep(unknown, self._search(unknown, k, 1))
        looked_up = self._looked_up(triggers, k)
        short = np.flatnonzero(np.count_nonzero(looked_up.items >= 0, axis=1) < needed)
        if not len(short):
            return looked_up
        further = self._search(triggers[short], k, needed)
        looked_up = _wide(looked_up, further.items.shape[1])
        looked_up.items[short], looked_up.scores[short] = -1, -np.inf
        looked_up.items[short, : further.items.shape[1]] = further.items
        looked_up.scores[short, : further.items.shape[1]] = further.scores
        return looked_up

    def _forget(self) -> None:
        self._parts: list[Candidates] = []
        self._has_gaps: list[bool] = []  # so that the first candidates of a part are not all that count
        self._part = np.full(self._num_items, -1)  # that has the trigger
        self._row = np.zeros(self._num_items, np.int64)  # of the trigger in that part
        self._reach = np.zeros(self._num_items, np.int64)  # candidates that were looked at

    def _keep(self, triggers: Indices, found: Candidates) -> None:
        self._part[triggers], self._row[triggers] = len(self._parts), np.arange(len(triggers))
        self._reach[triggers] = found.items.shape[1]
        self._parts.append(found)
        self._has_gaps.append(bool(((found.items[:, :-1] < 0) & (found.items[:, 1:] >= 0)).any()))

    def _looked_up(self, triggers: Indices, k: int) -> Candidates:
        shape, parts = (len(triggers), k), self._part[triggers]
        found = Candidates(
            self._head, np.full(shape, -1, row_type(self._num_items)), np.full(shape, -np.inf, np.float32)
        )
        for number in np.unique(parts):
            part, rows = self._parts[number], np.flatnonzero(parts == number)
            places = self._row[triggers[rows]]
            width = part.items.shape[1] if self._has_gaps[number] else k
            found = _wide(found, width)
            found.items[rows, :width] = part.items[places, :width]
            found.scores[rows, :width] = part.scores[places, :width]
        return found


def _wide(found: Candidates, width: int) -> Candidates:
    missing = ((0, 0), (0, max(0, width - found.items.shape[1])))
    if missing[1][1] == 0:
        return found
    return Candidates(
        found.head,
        np.pad(found.items, missing, constant_values=-1),
        np.pad(found.scores, missing, constant_values=-np.inf),
    )
