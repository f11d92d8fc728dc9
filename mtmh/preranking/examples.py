"""Training examples: every event of a history but the first, with what the user had done before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtmh.config import PrerankerConfig
from mtmh.data.batch import ItemBatch
from mtmh.data.dataset import Dataset
from mtmh.data.distinct import Distinct
from mtmh.data.histories import Histories
from mtmh.data.prefetch import prefetched
from mtmh.data.randomness import Purpose, chosen, generator
from mtmh.data.stream import PairPlan, PairStream, StepPairs, shards_of_rank
from mtmh.data.uniform_negatives import NegativeLogProbability, UniformNegatives
from mtmh.preranking.inputs import ItemInputs
from mtmh.preranking.labels import Labels


@dataclass
class ExampleBatch(ItemBatch):
    """Examples of one rank in one step; a batch of items and who points to them.

    Attributes:
        content: [U, E] frozen inputs of the items (`ItemInputs`).
        trigger: [M] rows: one of the last items before the event.
        positive: [M] rows: the event's item.
        history: [H] int64 rows of the items before the event, example after example, oldest first.
        history_offsets: [M + 1] int64.
        labels: [M, L] float32, see `Labels`.
    """

    history: Tensor
    history_offsets: Tensor
    labels: Tensor


class Events(NamedTuple):
    """Events of histories.

    Attributes:
        place: [P] int32 of the event in its history, from 1.
        row: [P] int32 the history.
    """

    place: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]

    def take(self, selection: slice | npt.NDArray[np.integer[Any]]) -> Events:
        """The selected events."""
        return Events(self.place[selection], self.row[selection])


class LaterEvents:
    """All events that have one before them, as what `PairStream` makes of histories."""

    def __str__(self) -> str:
        return "training examples (events with one before them)"

    def count(self, lengths: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """One less than the length, [R]."""
        return np.maximum(lengths.astype(np.int64) - 1, 0)

    def expand(self, histories: Histories) -> Events:
        """Of all users, in the order of the histories."""
        counts = self.count(np.diff(histories.offsets))
        starts = np.cumsum(counts) - counts
        place = np.arange(1, counts.sum() + 1) - np.repeat(starts, counts)
        return Events(place.astype(np.int32), np.repeat(np.arange(len(counts), dtype=np.int32), counts))

    def concatenate(self, parts: list[Events]) -> Events:
        """One part after another."""
        return Events(np.concatenate([part.place for part in parts]), np.concatenate([part.row for part in parts]))


class ExampleLoader:
    """Batches of one rank as a pure function of the step, like `PairLoader`: one global step on any number of ranks.

    What an example's user is can only come from before the example's event, and all of it from T1: see `_histories`.

    Attributes:
        steps_per_epoch: whole steps of an epoch.
        num_steps: steps of the run.
        num_examples: of the dataset.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: PrerankerConfig,
        inputs: ItemInputs,
        labels: Labels,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        pin_memory: bool = False,
    ) -> None:
        """Counts the examples.

        Args:
            dataset: the dataset artifact.
            settings: of the preranker.
            inputs: of the items.
            labels: of the events.
            seed: of the run.
            rank: this process.
            world_size: number of processes; must divide ``training.num_shards``.
            pin_memory: put batches into page-locked memory, for copies to a GPU.

        Raises:
            ValueError: the ranks do not divide the shards, or the dataset is too small for one step.
        """
        training = settings.training
        self._shards = shards_of_rank(training, rank, world_size)
        self._dataset = dataset
        self._settings = settings
        self._seed = seed
        self._inputs = inputs
        self._labels = labels
        self._rank = rank
        self._world_size = world_size
        self._pin_memory = pin_memory
        counts = dataset.item_table.train_count
        self._events = LaterEvents()
        self._plan = PairPlan(dataset.history_reader(), self._events, training, seed)
        self._negatives = UniformNegatives(dataset.known_items, settings.num_uniform_negatives, seed)
        in_batch = training.global_batch if settings.in_batch_negatives else 0
        self._counts = counts
        self._log_q = NegativeLogProbability(
            num_events=int(counts.sum()),
            num_known=len(dataset.known_items),
            in_batch=in_batch,
            uniform=settings.num_uniform_negatives,
        )
        self.steps_per_epoch = self._plan.steps_per_epoch
        self.num_steps = training.num_steps(self.steps_per_epoch)
        self.num_examples = self._plan.num_pairs

    def batches(self, start_step: int = 0) -> Iterator[ExampleBatch]:
        """The batches from a global step to the end of the run, made ahead in a background thread."""
        return prefetched(self.iterate(start_step), self._settings.training.prefetch_batches)

    def iterate(self, start_step: int = 0) -> Iterator[ExampleBatch]:
        """The same batches, each made when it is asked for, in the thread that asks."""
        reader = self._dataset.history_reader(cached_groups=len(self._shards) + 1, labels=True)
        stream = PairStream(reader, self._plan, self._events, self._shards)
        distinct = Distinct()
        for step in range(start_step, self.num_steps):
            epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
            batch = self._assemble(stream.read(epoch, step_of_epoch), distinct, epoch, step)
            yield batch.pin_memory() if self._pin_memory else batch

    def _assemble(self, events: StepPairs[Events], distinct: Distinct, epoch: int, step: int) -> ExampleBatch:
        of_users = events.histories
        places = of_users.offsets[events.pairs.row] + events.pairs.place
        single = np.ones(len(places), np.int64)
        candidates = of_users.before(places + 1, single)
        trigger, history = self._histories(events, places, step)
        uniform = self._negatives.draw(epoch, step, self._rank, self._world_size)
        parts = [trigger, candidates.items, uniform, history.items]
        items, rows = distinct(np.concatenate(parts), self._dataset.num_items)
        trigger_rows, positive, uniform_rows, history_rows = np.split(
            rows, np.cumsum([len(part) for part in parts])[:-1]
        )
        dropout = self._settings.id_dropout
        hidden = chosen(items, dropout, Purpose.ID_DROPOUT, self._seed, step) if dropout else None
        sparse, dense, frozen = self._inputs.gather(items, hidden)
        return ExampleBatch(
            sparse=sparse,
            dense=dense,
            item_index=torch.from_numpy(items),
            log_q=torch.from_numpy(self._log_q(self._counts[items])),
            content=frozen,
            trigger=torch.from_numpy(trigger_rows),
            positive=torch.from_numpy(positive),
            uniform=torch.from_numpy(uniform_rows),
            step=step,
            epoch=epoch,
            history=torch.from_numpy(history_rows),
            history_offsets=torch.from_numpy(history.offsets),
            labels=torch.from_numpy(self._labels(candidates)),
        )

    def _histories(
        self, events: StepPairs[Events], places: npt.NDArray[np.int64], step: int
    ) -> tuple[npt.NDArray[np.int32], Histories]:
        """Trigger and history of each example, from before its event.

        Args:
            events: the examples [M].
            places: [M] of their events in ``events.histories.items``.
            step: keys the draws; those of an example depend on its place in the global batch alone.
        """
        settings = self._settings
        size = len(places) // len(self._shards)
        rng = generator(Purpose.HISTORY_CONTEXT, self._seed, step)
        draws = rng.random((2, settings.training.global_batch))
        draws = draws[:, self._shards.start * size : self._shards.stop * size]
        before = events.pairs.place.astype(np.int64)
        back = 1 + np.floor(draws[0] * np.minimum(before, settings.window)).astype(np.int64)
        trigger = events.histories.items[places - back]
        alone = draws[1] < settings.history_dropout
        ends = np.where(alone, places - back + 1, places)
        lengths = np.where(alone, 1, np.minimum(before, settings.history_length))
        return trigger, events.histories.before(ends, lengths)
