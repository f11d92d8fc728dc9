"""Figures of whole lists: interests that they cover and discover, how varied and how young they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices
from mtmh.data.histories import Histories
from mtmh.evaluation.metrics import Ratio, Values
from mtmh.preranking.neighbours import distinct_pairs

YOUNG_SECONDS = 48 * 3600


class Interests:
    """The interests of U users, an interest being a topic.

    Args:
        topics: [I] topic codes, -1: the item has none.
        histories: of the training period.
        truth: items of the test period.
    """

    def __init__(self, topics: Indices, histories: Histories, truth: Histories) -> None:
        self._topics = np.append(topics, -1)  # the last is for item -1
        self._num_users = len(truth.offsets) - 1
        known = self._pairs(_owners(histories), histories.items)
        self._later = self._pairs(_owners(truth), truth.items)
        self._new = np.setdiff1d(self._later, known, assume_unique=True)

    def covered(self, lists: Indices, ks: Sequence[int]) -> dict[int, Ratio]:
        """User interest recall: the test period's topics that the first k of a list are about, and all of them.

        Args:
            lists: [U, N] item indices, -1: none.
            ks: cut-offs.
        """
        return self._found(lists, self._later, ks)

    def discovered(self, lists: Indices, hits: npt.NDArray[np.bool_], ks: Sequence[int]) -> dict[int, Ratio]:
        """Novel interest discovery: topics new to the user that hits among the first k are about, and all such topics.

        Args:
            lists: as in ``covered``.
            hits: [U, N] of `hits_in`.
            ks: cut-offs.
        """
        return self._found(np.where(hits, lists, -1), self._new, ks)

    def diversity(self, lists: Indices, ks: Sequence[int]) -> dict[int, Ratio]:
        """Pairs of different topics among the first k of a list, and all pairs; items without a topic are left out."""
        keys, place, column = self._numbered(lists)
        users, counts, start = keys >> 32, np.zeros(len(keys)), 0
        found: dict[int, Ratio] = {}
        for k in sorted(ks):
            counts += np.bincount(place[(column >= start) & (column < k)], minlength=len(keys))
            sizes, same = (
                np.bincount(users, of_pairs, self._num_users) for of_pairs in (counts, counts * (counts - 1))
            )
            pairs, start = (sizes * (sizes - 1)).astype(np.float64), k
            # Every user counts once, however many pairs a list has.
            share = np.divide(pairs - same, pairs, out=np.zeros_like(pairs), where=pairs > 0)
            found[k] = (share, (pairs > 0).astype(np.float64))
        return found

    def _found(self, lists: Indices, wanted: Indices, ks: Sequence[int]) -> dict[int, Ratio]:
        """The wanted pairs of <user, topic> that are among the first k of a list, and all of them."""
        keys, place, column = self._numbered(lists)
        first = np.full(len(keys), lists.shape[1])
        np.minimum.at(first, place, column)
        is_wanted = np.isin(keys, wanted, assume_unique=True)
        keys, first, of_wanted = keys[is_wanted], first[is_wanted], self._a_user(wanted)
        return {k: (self._a_user(keys[first < k]), of_wanted) for k in ks}

    def _numbered(self, lists: Indices) -> tuple[Indices, Indices, Indices]:
        """Distinct <user, topic> pairs, ascending; the pair of each of the M items that have a topic; their columns."""
        topics = self._topics[lists]
        users, columns = np.nonzero(topics >= 0)
        keys, place = distinct_pairs(users, topics[users, columns])
        return keys, place, columns

    def _pairs(self, users: Indices, items: Indices) -> npt.NDArray[np.int64]:
        """Distinct <user, topic> pairs as numbers, ascending."""
        topics = self._topics[items]
        known = topics >= 0
        return distinct_pairs(users[known], topics[known])[0]

    def _a_user(self, pairs: Indices) -> Values:
        return np.bincount(pairs >> 32, minlength=self._num_users).astype(np.float64)


def _owners(lists: Histories) -> Indices:
    return np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets))


def young_items(first_seen: npt.NDArray[np.float64], cutoff: float) -> npt.NDArray[np.bool_]:
    """[I] items whose first training event is less than 48 hours before the test period, or that have none.

    Args:
        first_seen: [I] of the training period, in seconds, nan: none.
        cutoff: first instant of the test period.
    """
    return np.asarray(np.isnan(first_seen) | (first_seen > cutoff - YOUNG_SECONDS))


def match_at(lists: Indices, brought_by: Indices, topics: Indices, ks: Sequence[int]) -> dict[int, Ratio]:
    """Items among the first k of a list that have the topic of the trigger that brought them, and all that count.

    Args:
        lists: [U, N] item indices, -1: none.
        brought_by: [U, N] the trigger of each, -1: none.
        topics: [I] topic codes, -1: no topic, the pair does not count.
        ks: cut-offs.
    """
    padded = np.append(topics, -1)
    own, theirs = padded[brought_by], padded[lists]
    counted = (own >= 0) & (theirs >= 0)
    matching = counted & (own == theirs)
    return {
        k: (matching[:, :k].sum(axis=1).astype(np.float64), counted[:, :k].sum(axis=1).astype(np.float64)) for k in ks
    }
