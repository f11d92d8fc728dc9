"""The pairs of a step: a position in the epoch's order, whatever the number of ranks.

The pairs of an epoch are those of the row groups in a seeded order, one after another. They are cut at pair level into
``num_shards`` equal shards; a step takes ``batch_size / num_shards`` pairs of each. Within a shard, blocks of about
``shuffle_pairs`` pairs are shuffled. So the pairs of (epoch, step, shard) follow from the lengths of the histories
and the seed alone: any rank can read any shard from any step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from mtmh.config import TrainingConfig
from mtmh.data import histories as flat
from mtmh.data.dataset import Dataset
from mtmh.data.histories import Histories, HistoryReader
from mtmh.data.randomness import Purpose, generator


class Rows(Protocol):
    """Training pairs or the like: a NamedTuple of arrays [P], of which ``row`` names the history of each."""

    @property
    def row(self) -> npt.NDArray[np.int32]:
        """[P] places in the histories that they were made of."""

    def take(self, selection: slice | npt.NDArray[np.integer[Any]]) -> Self:
        """The selected ones."""


RowsT = TypeVar("RowsT", bound=Rows)
TrainingT = TypeVar("TrainingT", bound=TrainingConfig)


class Expansion(Protocol[RowsT]):
    """Samples of each history; their number follows from its length alone, so that a shard can start at any of them."""

    def count(self, lengths: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """Number of samples of histories of these lengths, [R]."""

    def expand(self, histories: Histories) -> RowsT:
        """All of them, user by user."""

    def concatenate(self, parts: list[RowsT]) -> RowsT:
        """One part after another; rows are left as they are."""


def shards_of_rank(training: TrainingConfig, rank: int, world_size: int) -> range:
    """The data shards that a rank reads.

    Raises:
        ValueError: the ranks do not divide the shards.
    """
    assert 0 <= rank < world_size
    if training.num_shards % world_size:
        divisors = [n for n in range(1, training.num_shards + 1) if training.num_shards % n == 0]
        raise ValueError(
            f"{world_size} ranks cannot share training.num_shards = {training.num_shards} data shards evenly; "
            f"run on one of {divisors} ranks or change training.num_shards"
        )
    per_rank = training.num_shards // world_size
    return range(rank * per_rank, (rank + 1) * per_rank)


def pairs_of_groups(reader: HistoryReader, pairs: Expansion[Any]) -> npt.NDArray[np.int64]:
    """The number of pairs of each row group [G], in file order, from the lengths of the histories."""
    groups = pairwise(reader.group_starts.tolist())
    return np.array([pairs.count(reader.lengths[first:end]).sum() for first, end in groups], dtype=np.int64)


def sized(training: TrainingT, dataset: Dataset, pairs: Expansion[Any]) -> TrainingT:
    """Settings with a number for ``batch_size``; the pairs of the dataset are counted only where it follows from them.

    Raises:
        ValueError: the histories are damaged.
    """
    if training.batch_size != "auto":
        return training
    return training.sized(int(pairs_of_groups(dataset.history_reader(), pairs).sum()))


class PairPlan:
    """Cuts epochs into shards, blocks and steps.

    Attributes:
        pairs_per_group: [G] int64 pairs of each row group, in file order.
        num_pairs: pairs of the dataset.
        steps_per_epoch: whole steps; the up to ``batch_size - 1`` pairs at the end of the epoch's order are left out.
    """

    def __init__(self, reader: HistoryReader, pairs: Expansion[Any], training: TrainingConfig, seed: int) -> None:
        """Counts pairs from the lengths of the histories.

        Raises:
            ValueError: there are fewer pairs than one step takes.
        """
        self.pairs_per_group = pairs_of_groups(reader, pairs)
        self.num_pairs = int(self.pairs_per_group.sum())
        self.num_shards = training.num_shards
        self.shard_batch = training.global_batch // training.num_shards
        self.steps_per_epoch = self.num_pairs // training.global_batch
        self._block_steps = max(1, training.shuffle_pairs // self.shard_batch)
        self._seed = seed
        if self.steps_per_epoch == 0:
            fits = self.num_pairs // training.num_shards * training.num_shards
            cure = (
                f"a batch_size of at most {fits} would fit"
                if fits
                else f"lower training.num_shards ({training.num_shards}) as well"
            )
            raise ValueError(
                f"the dataset has {self.num_pairs} {pairs}, fewer than "
                f"training.batch_size ({training.global_batch}): {cure}"
            )

    def group_order(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The order of the row groups in an epoch [G], and where the pairs of each begin in the epoch [G + 1]."""
        order = generator(Purpose.ROW_GROUP_ORDER, self._seed, epoch).permutation(len(self.pairs_per_group))
        starts = np.concatenate([[0], np.cumsum(self.pairs_per_group[order])])
        return order, starts

    def block_at(self, shard: int, step: int) -> tuple[int, int, int]:
        """The block of a shard that holds a step of the epoch: its number, its first step and the step after its last.

        The first block of each shard is cut short by another amount, so that blocks are not all read in one step.
        """
        phase = shard * self._block_steps // self.num_shards
        block = (step + phase) // self._block_steps
        first = max(0, block * self._block_steps - phase)
        return block, first, min(self.steps_per_epoch, (block + 1) * self._block_steps - phase)

    def pair_range(self, shard: int, first_step: int, end_step: int) -> tuple[int, int]:
        """The positions in the epoch of the pairs of some steps of a shard."""
        start = shard * self.steps_per_epoch * self.shard_batch
        return start + first_step * self.shard_batch, start + end_step * self.shard_batch

    def permutation(self, epoch: int, shard: int, block: int, size: int) -> npt.NDArray[np.int64]:
        """The shuffle of one block."""
        return generator(Purpose.SHUFFLE_BLOCK, self._seed, epoch, shard, block).permutation(size)


@dataclass(frozen=True)
class Block(Generic[RowsT]):
    """Shuffled pairs of some consecutive steps of a shard, and the histories that they come from."""

    first_step: int
    end_step: int
    pairs: RowsT  # ``row`` counts from the first of ``histories``
    histories: Histories


@dataclass(frozen=True)
class StepPairs(Generic[RowsT]):
    """The pairs of one step of several shards, in shard order.

    Attributes:
        pairs: ``row`` points into ``histories``.
        histories: of the users of all current blocks; the same object until a block changes.
    """

    pairs: RowsT
    histories: Histories


class PairStream(Generic[RowsT]):
    """Reads the pairs of some shards; fast for steps in ascending order, right in any order.

    One stream belongs to one thread.
    """

    def __init__(self, reader: HistoryReader, plan: PairPlan, pairs: Expansion[RowsT], shards: range) -> None:
        self._reader = reader
        self._plan = plan
        self._pairs = pairs
        self._shards = shards
        self._epoch = -1
        self._blocks: list[Block[RowsT]] = []

    def read(self, epoch: int, step: int) -> StepPairs[RowsT]:
        """The pairs of one step of the epoch.

        Raises:
            ValueError: the histories are damaged.
        """
        if epoch != self._epoch:
            self._epoch = epoch
            self._order, self._starts = self._plan.group_order(epoch)
            self._blocks = [self._read_block(shard, step) for shard in self._shards]
            self._pool_histories()
        elif not all(block.first_step <= step < block.end_step for block in self._blocks):
            self._blocks = [
                block if block.first_step <= step < block.end_step else self._read_block(shard, step)
                for shard, block in zip(self._shards, self._blocks, strict=True)
            ]
            self._pool_histories()
        size = self._plan.shard_batch
        parts = [
            block.pairs.take(slice((step - block.first_step) * size, (step - block.first_step + 1) * size))
            for block in self._blocks
        ]
        pairs = self._pairs.concatenate(parts)
        pairs.row.reshape(len(parts), size)[:] += self._first_rows[:, None]
        return StepPairs(pairs, self._histories)

    def _pool_histories(self) -> None:
        counts = [len(block.histories.offsets) - 1 for block in self._blocks]
        self._first_rows = np.cumsum([0, *counts[:-1]], dtype=np.int32)
        self._histories = flat.concatenate_histories([block.histories for block in self._blocks])

    def _read_block(self, shard: int, step: int) -> Block[RowsT]:
        number, first_step, end_step = self._plan.block_at(shard, step)
        begin, end = self._plan.pair_range(shard, first_step, end_step)
        parts: list[RowsT] = []
        histories: list[Histories] = []
        num_users = 0
        first = int(np.searchsorted(self._starts, begin, side="right")) - 1
        for place in range(first, int(np.searchsorted(self._starts, end, side="left"))):
            if self._starts[place] == self._starts[place + 1]:
                continue  # a row group whose histories are all too short for a pair
            users, pairs = self._read_range(place, begin, end)
            pairs.row[:] += np.int32(num_users)
            num_users += len(users.offsets) - 1
            histories.append(users)
            parts.append(pairs)
        pairs = self._pairs.concatenate(parts)
        shuffle = self._plan.permutation(self._epoch, shard, number, end - begin)
        return Block(first_step, end_step, pairs.take(shuffle), flat.concatenate_histories(histories))

    def _read_range(self, place: int, begin: int, end: int) -> tuple[Histories, RowsT]:
        """Pairs ``begin`` to ``end - 1`` of the epoch as far as they are in the row group at ``place`` of its order."""
        group_start = self._starts[place]
        group = self._reader.read(int(self._order[place]))
        counts = self._pairs.count(np.diff(group.offsets))
        starts = np.concatenate([[0], np.cumsum(counts)])
        begin = max(begin - group_start, 0)
        end = min(end - group_start, starts[-1])
        first_user = int(np.searchsorted(starts, begin, side="right")) - 1
        end_user = int(np.searchsorted(starts, end, side="left"))
        users = group.users(first_user, end_user)
        pairs = self._pairs.expand(users)
        return users, pairs.take(slice(begin - starts[first_user], end - starts[first_user]))
