"""Uniform negatives, and the probability of each item under the mix of in-batch and uniform negatives."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices, narrowed
from mtmh.data.randomness import Purpose, generator

_HELD_ITEMS = 1 << 27  # of a catalogue whose known items a process may hold: half a gigabyte
_BLOCK_ITEMS = 128


def known_items(train_count: npt.NDArray[np.int64]) -> Indices:
    """The items with training events [K], ascending."""
    return narrowed(np.flatnonzero(train_count > 0), len(train_count))


class CountedItems:
    """The items with training events, ascending, of a catalogue too large to hold them: a number for each 128 items.

    The items themselves are looked up in the counts, which all processes of a host map: two billion take 125 MB of a
    process where they would be 8 GB.

    Args:
        train_count: [I] training events of the items, memory-mapped.
    """

    def __init__(self, train_count: npt.NDArray[np.int64]) -> None:
        self._train_count = train_count
        starts = range(0, len(train_count), _BLOCK_ITEMS << 13)
        in_block = [_known_in_blocks(train_count[start : start + (_BLOCK_ITEMS << 13)]) for start in starts]
        self._before = np.concatenate([np.zeros(1, np.int64), *in_block]).cumsum()

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getitem__(self, numbers: npt.NDArray[np.int64]) -> Indices:
        """Items [n] by their numbers [n] among the known ones."""
        block = np.searchsorted(self._before, numbers, side="right") - 1
        items = block[:, None] * _BLOCK_ITEMS + np.arange(_BLOCK_ITEMS)
        counts = self._train_count[items.clip(max=len(self._train_count) - 1)]
        # The first place where as many as are wanted have been seen; what is clipped comes behind all others.
        seen = np.cumsum(counts > 0, axis=1) > (numbers - self._before[block])[:, None]
        return narrowed(block * _BLOCK_ITEMS + seen.argmax(axis=1), len(self._train_count))


KnownItems: TypeAlias = Indices | CountedItems


def find_known_items(train_count: npt.NDArray[np.int64]) -> KnownItems:
    """The items with training events, held or, of a very large catalogue, looked up."""
    return known_items(train_count) if len(train_count) <= _HELD_ITEMS else CountedItems(train_count)


def known_bytes(num_items: int) -> int:
    """Memory of a process for `find_known_items`, at most."""
    return 4 * num_items if num_items <= _HELD_ITEMS else 8 * num_items // _BLOCK_ITEMS


def _known_in_blocks(train_count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    starts = np.arange(0, len(train_count), _BLOCK_ITEMS)
    return np.add.reduceat(train_count > 0, starts, dtype=np.int64)


class UniformNegatives:
    """Draws items with replacement, all known items alike.

    Known are the items with events in the training period: a fresh item first shows in the test period, and drawing
    it would tell the model that it exists.
    """

    def __init__(self, known: KnownItems, num_draws: int, seed: int) -> None:
        """Takes what draws follow from.

        Args:
            known: [K] items with training events, ascending (`find_known_items`).
            num_draws: draws of one global step.
            seed: the run's.
        """
        self._known = known
        self._num_draws = num_draws
        self._seed = seed

    def draw(self, epoch: int, step: int, rank: int, world_size: int) -> npt.NDArray[np.integer[Any]]:
        """A rank's share of the draws of one global step.

        The draws are those of the step; rank ``r`` of ``W`` takes ``r * N // W`` to ``(r + 1) * N // W - 1``, so shares
        differ by at most one draw and together are the same for any ``W``.

        Returns:
            item indices.
        """
        draws = generator(Purpose.UNIFORM_NEGATIVES, self._seed, epoch, step).integers(
            0, len(self._known), self._num_draws
        )
        share = draws[rank * self._num_draws // world_size : (rank + 1) * self._num_draws // world_size]
        return self._known[share]


class NegativeLogProbability:
    """Log probability that one negative, drawn from the whole mix, is a given item.

    With ``B`` in-batch and ``N`` uniform negatives a step: ``q(j) = B / (B + N) * p(j) + N / (B + N) / K`` for the
    ``K`` items with training events; ``B = 0`` without in-batch negatives. ``p(j)``, the share of pairs with candidate
    ``j``, is approximated by the share of training events with item ``j``. Close for long histories; in short ones
    the first ``window`` items are candidates of fewer pairs than the later ones, which event counts ignore.
    """

    def __init__(self, *, num_events: int, num_known: int, in_batch: int, uniform: int) -> None:
        """Takes the training events and the items that have some, and how many negatives of each kind a step has."""
        draws = in_batch + uniform
        self._per_event = in_batch / draws / num_events
        self._floor = uniform / draws / num_known

    def __call__(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Log probabilities [U] float32 of items with so many training events [U]."""
        # An item in a batch has events; the clip keeps log finite should the counts disagree with the histories.
        counts = np.maximum(counts, 1)
        log_q: npt.NDArray[np.float32] = np.log(counts * self._per_event + self._floor).astype(np.float32)
        return log_q
