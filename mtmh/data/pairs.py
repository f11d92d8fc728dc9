"""Positives: pairs of items that follow each other in one user's history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices
from mtmh.data.histories import Histories

Direction = Literal["forward", "both"]


class Pairs(NamedTuple):
    """Training pairs as parallel arrays.

    Attributes:
        trigger: [P] item indices.
        candidate: [P] item indices.
        row: [P] int32 the history that each pair comes from.
    """

    trigger: Indices
    candidate: Indices
    row: npt.NDArray[np.int32]

    def take(self, selection: slice | npt.NDArray[np.integer[Any]]) -> Pairs:
        """The selected pairs."""
        return Pairs(self.trigger[selection], self.candidate[selection], self.row[selection])


@dataclass(frozen=True)
class WindowPairs:
    """The pairs of ``expand_pairs`` as what `stream.PairStream` makes of histories."""

    window: int
    direction: Direction

    def __str__(self) -> str:
        return f"training pairs (pairs.window {self.window})"

    def count(self, lengths: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """As ``count_pairs``."""
        return count_pairs(lengths, self.window, self.direction)

    def expand(self, histories: Histories) -> Pairs:
        """As ``expand_pairs``."""
        return expand_pairs(histories, self.window, self.direction)

    def concatenate(self, parts: list[Pairs]) -> Pairs:
        """All pairs, one part after another; rows are left as they are."""
        return concatenate_pairs(parts)


def concatenate_pairs(parts: list[Pairs]) -> Pairs:
    """All pairs, one part after another; rows are left as they are."""
    return Pairs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def count_pairs(lengths: npt.NDArray[np.integer[Any]], window: int, direction: Direction) -> npt.NDArray[np.int64]:
    """The number of pairs that ``expand_pairs`` makes of histories of these lengths.

    The item at position ``t`` (from 0) is paired with the ``min(t, window)`` items before it, so a history of ``T``
    items gives the sum of that over ``t < T``; twice as many when each pair goes both ways. Items that come again are
    not left out: the count depends on the length alone, which lets a shard of the data start at any pair.

    Args:
        lengths: [R] history lengths.
        window: how far back a positive may lie, in items.
        direction: ``forward`` or ``both``.

    Returns:
        [R] int64.
    """
    lengths = lengths.astype(np.int64)
    ramp = np.minimum(lengths, window)
    counts: npt.NDArray[np.int64] = ramp * (ramp - 1) // 2 + (lengths - ramp) * window
    return counts * (2 if direction == "both" else 1)


def expand_pairs(histories: Histories, window: int, direction: Direction) -> Pairs:
    """All pairs of the histories, user by user.

    A pair of an item with itself (an item that comes again within the window) is made like any other, so that
    ``count_pairs`` holds; ``weights.PairWeights`` gives it weight 0.

    Args:
        histories: [R] users.
        window: item T of a history is paired with each of the ``window`` items before it.
        direction: ``forward``: the earlier item is the trigger. ``both``: each pair also the other way round.

    Returns:
        ``sum(count_pairs(lengths))`` pairs; ``row`` is the position of the user in ``histories``.
    """
    num_events = len(histories.items)
    lengths = np.diff(histories.offsets)
    events = np.arange(num_events, dtype=np.int32)
    row_of_event = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    before = events - np.repeat(histories.offsets[:-1].astype(np.int32), lengths)
    np.minimum(before, window, out=before)  # triggers of each event
    ends = np.cumsum(before, dtype=np.int64)
    num_pairs = int(ends[-1]) if num_events else 0
    assert num_pairs < 2**31, "expand fewer users at a time"
    # Pair p of event e, whose first pair is `ends - before`, has its trigger at event e - before + (p - first pair).
    trigger_event = np.repeat(events - ends.astype(np.int32), before)
    trigger_event += np.arange(num_pairs, dtype=np.int32)
    trigger = histories.items[trigger_event]
    candidate: Indices = histories.items.repeat(before)
    row = np.repeat(row_of_event, before)
    if direction == "both":
        first: Indices = np.stack([trigger, candidate], axis=1)
        second: Indices = first[:, ::-1].ravel()
        return Pairs(first.ravel(), second, np.repeat(row, 2))
    return Pairs(trigger, candidate, row)
