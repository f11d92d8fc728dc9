"""Figures of whole lists: interests that they cover and discover, how varied and how young they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices
from mtmh.data.histories import Histories
from mtmh.evaluation.metrics import Values

YOUNG_SECONDS = 48 * 3600

Ratio = tuple[Values, Values]  # what is summed over users, above and below


class Interests:
    """The interests of U users, an interest being a topic.

    Args:
        topics: [I] topic codes, -1: the item has none.
        histories: of the training period.
        truth: items of the test period.
    """

    def __init__(self, topics: Indices, histories: Histories, truth: Histories) -> None:
        self._topics = np.append(topics, -1)  # the last is for item -1
        self._width = int(topics.max(initial=-1)) + 1
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
        return {k: self._found(lists[:, :k], self._later) for k in ks}

    def discovered(self, lists: Indices, hits: npt.NDArray[np.bool_], ks: Sequence[int]) -> dict[int, Ratio]:
        """Novel interest discovery: topics new to the user that hits among the first k are about, and all such topics.

        Args:
            lists: as in ``covered``.
            hits: [U, N] of `hits_in`.
            ks: cut-offs.
        """
        of_hits = np.where(hits, lists, -1)
        return {k: self._found(of_hits[:, :k], self._new) for k in ks}

    def diversity(self, lists: Indices, ks: Sequence[int]) -> dict[int, Ratio]:
        """Pairs of different topics among the first k of a list, and all pairs; items without a topic are left out."""
        found = {}
        for k in ks:
            topics = self._topics[lists[:, :k]]
            users, columns = np.nonzero(topics >= 0)
            sizes = np.bincount(users, minlength=self._num_users)
            keys, counts = np.unique(users * self._width + topics[users, columns], return_counts=True)
            same = np.bincount(keys // max(1, self._width), weights=counts * (counts - 1), minlength=self._num_users)
            pairs = (sizes * (sizes - 1)).astype(np.float64)
            # Every user counts once, however many pairs a list has.
            share = np.divide(pairs - same, pairs, out=np.zeros_like(pairs), where=pairs > 0)
            found[k] = (share, (pairs > 0).astype(np.float64))
        return found

    def _found(self, lists: Indices, wanted: Indices) -> Ratio:
        pairs = self._pairs(np.repeat(np.arange(len(lists)), lists.shape[1]), lists.ravel())
        return self._a_user(np.intersect1d(pairs, wanted, assume_unique=True)), self._a_user(wanted)

    def _pairs(self, users: Indices, items: Indices) -> npt.NDArray[np.int64]:
        """Distinct <user, topic> pairs as numbers, ascending."""
        topics = self._topics[items]
        known = topics >= 0
        return np.unique(users[known].astype(np.int64) * self._width + topics[known])

    def _a_user(self, pairs: Indices) -> Values:
        counts = np.bincount(pairs // max(1, self._width), minlength=self._num_users)
        return np.asarray(counts, dtype=np.float64)


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
