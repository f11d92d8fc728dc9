"""Training batches: pairs, negatives and item inputs of each step, the same global step on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.config import LossConfig, ModelConfig, PairsConfig, TrainingConfig
from mtmh.data.arrays import Indices, Items
from mtmh.data.batch import PairBatch
from mtmh.data.content_store import ContentEmbeddings
from mtmh.data.dataset import Dataset
from mtmh.data.distinct import Distinct
from mtmh.data.item_table import ItemColumns
from mtmh.data.pairs import Pairs, WindowPairs
from mtmh.data.prefetch import prefetched
from mtmh.data.randomness import Purpose, chosen
from mtmh.data.stream import PairPlan, PairStream, StepPairs, shards_of_rank
from mtmh.data.uniform_negatives import NegativeLogProbability, UniformNegatives
from mtmh.data.weights import PairWeights


class PairLoader:
    """Batches of one rank as a pure function of the step.

    The global step holds ``batch_size`` pairs and ``num_uniform_negatives`` draws, both fixed by seed, epoch and
    step; a rank takes the pairs of its shards and its slice of the draws. Remembering the step is all it takes to
    resume.

    Attributes:
        steps_per_epoch: whole steps of an epoch.
        num_steps: steps of the run: ``epochs`` times that, at most ``max_steps``.
        num_pairs: training pairs of the dataset.
    """

    def __init__(
        self,
        dataset: Dataset,
        pairs: PairsConfig,
        loss: LossConfig,
        training: TrainingConfig,
        model: ModelConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        content: ContentEmbeddings | None = None,
        *,
        content_rows: str | None = None,
        pin_memory: bool = False,
    ) -> None:
        """Counts the pairs; reads the lengths of the histories and the training counts, no history.

        Args:
            dataset: the dataset artifact.
            pairs: which items of a history make a pair, and what it weighs.
            loss: negatives, masks, propensity and sampling correction.
            training: batch size, shards and length of the run.
            model: ``id_dropout`` and ``id_tables`` matter here.
            seed: of the recipe.
            rank: this process.
            world_size: number of processes; must divide ``training.num_shards``.
            content: teacher embeddings; without, batches have content of width 0.
            content_rows: instead of embeddings, batches name the items' rows in a table of them, under this key of
                ``sparse``.
            pin_memory: put batches into page-locked memory, for copies to a GPU.

        Raises:
            ValueError: the ranks do not divide the shards, the dataset is too small for one step, or settings name what
                the dataset lacks.
        """
        self._shards = shards_of_rank(training, rank, world_size)
        self._dataset = dataset
        self._loss = loss
        self._model = model
        self._seed = seed
        self._prefetch_batches = training.prefetch_batches
        self._rank = rank
        self._world_size = world_size
        self._content = None if content_rows else content
        self._content_rows = content_rows
        self._pin_memory = pin_memory
        self._rides = dataset.ride_along
        known = dataset.known_items
        if not len(known):
            raise ValueError(f"{dataset.artifact.path}: no item has training events (item_table/train_count.npy)")
        self._pairs = WindowPairs(pairs.window, pairs.direction)
        self._plan = PairPlan(dataset.history_reader(), self._pairs, training, seed)
        self._weights = PairWeights(pairs.sim, loss.propensity, dataset.item_table, content is not None)
        self._negatives = UniformNegatives(known, loss.num_uniform_negatives, seed)
        self._log_q = None
        if loss.log_q == "counts":
            self._log_q = NegativeLogProbability(
                num_events=dataset.summary.num_train_events,
                num_known=len(known),
                in_batch=round(loss.in_batch_share * training.global_batch) if loss.in_batch_negatives else 0,
                uniform=loss.num_uniform_negatives,
            )
        self.steps_per_epoch = self._plan.steps_per_epoch
        self.num_steps = training.num_steps(self.steps_per_epoch)
        self.num_pairs = self._plan.num_pairs

    def batches(self, start_step: int = 0) -> Iterator[PairBatch]:
        """The batches from a global step to the end of the run, made ahead in a background thread.

        Args:
            start_step: steps already done, counted over all epochs.

        Returns:
            an iterator; close or drop it to end the thread.
        """
        assert start_step >= 0
        return prefetched(self.iterate(start_step), self._prefetch_batches)

    def iterate(self, start_step: int = 0) -> Iterator[PairBatch]:
        """The same batches, each made when it is asked for, in the thread that asks."""
        numbered = self._rides is not None
        reader = self._dataset.history_reader(cached_groups=len(self._shards) + 1, numbered=numbered)
        stream = PairStream(reader, self._plan, self._pairs, self._shards)
        distinct = Distinct()
        for step in range(start_step, self.num_steps):
            epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
            batch = self._assemble(stream.read(epoch, step_of_epoch), distinct, epoch, step)
            yield batch.pin_memory() if self._pin_memory else batch

    def _assemble(self, step_pairs: StepPairs[Pairs], distinct: Distinct, epoch: int, step: int) -> PairBatch:
        events = np.concatenate([step_pairs.pairs.trigger, step_pairs.pairs.candidate])
        paired = self._items_of(events)
        uniform = self._negatives.draw(epoch, step, self._rank, self._world_size)
        items, rows = distinct(np.concatenate([paired, uniform]), self._dataset.num_items)
        trigger, positive, uniform_rows = np.split(rows, [len(paired) // 2, len(paired)])
        table, places, content = self._inputs(items, events, rows[: len(paired)])
        dropout = self._model.id_dropout
        hidden = chosen(items, dropout, Purpose.ID_DROPOUT, self._seed, step) if dropout else None
        sparse, dense = table.gather(places, hidden, raw=self._model.id_tables)
        if self._content_rows:
            one_each = torch.ones(len(items), dtype=torch.int64)
            own = KeyedJaggedTensor([self._content_rows], torch.from_numpy(items), lengths=one_each)
            sparse = KeyedJaggedTensor.concat([sparse, own])
        log_q = np.zeros(len(items), np.float32) if self._log_q is None else self._log_q(table.train_count[places])
        history_values, history_offsets, history_row = self._histories(step_pairs, distinct)
        return PairBatch(
            sparse=sparse,
            dense=dense,
            item_index=torch.from_numpy(items),
            trigger=torch.from_numpy(trigger),
            positive=torch.from_numpy(positive),
            weight=self._weights(table, places, trigger, positive, content),
            uniform=torch.from_numpy(uniform_rows),
            log_q=torch.from_numpy(log_q),
            content=content,
            history_values=history_values,
            history_offsets=history_offsets,
            history_row=history_row,
            step=step,
            epoch=epoch,
        )

    def _items_of(self, events: Indices) -> Indices:
        """Items of what the stream gives: numbers of events, where features ride along with these, or items."""
        return events if self._rides is None else self._dataset.event_items[events]

    def _inputs(self, items: Items, events: Indices, rows: Items) -> tuple[ItemColumns, Items, Tensor]:
        """Features of the items of a batch; those of pairs ride along with the events, the others are looked up.

        Args:
            items: [U] distinct.
            events: [2 M] of the pairs.
            rows: [2 M] of ``items``, those of the events.

        Returns:
            A table, the items' numbers in it, and their content [U, Dc].
        """
        content = self._content
        if self._rides is None:
            found = torch.empty(len(items), 0) if content is None else content.gather(items)
            return self._dataset.item_table, items, found
        event = np.full(len(items), -1)
        event[rows] = events
        own, others = np.flatnonzero(event >= 0), np.flatnonzero(event < 0)
        places = np.empty(len(items), np.int64)
        places[own], places[others] = np.arange(len(own)), np.arange(len(own), len(items))
        raw = bool(self._model.id_tables)
        table = self._rides.taken(event[own], raw=raw).followed_by(
            self._dataset.item_table.taken(items[others], raw=raw)
        )
        if content is None:
            return table, places, torch.empty(len(items), 0)
        return table, places, torch.cat([content.gather_events(event[own]), content.gather(items[others])])[places]

    def _histories(self, step_pairs: StepPairs[Pairs], distinct: Distinct) -> tuple[Tensor, Tensor, Tensor]:
        """Values, offsets and rows of the masks' histories."""
        if not self._loss.mask_history:
            no_row = torch.zeros(len(step_pairs.pairs.row), dtype=torch.int64)
            return torch.empty(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), no_row
        histories = step_pairs.histories
        users, rows = distinct(step_pairs.pairs.row, len(histories.offsets) - 1)
        recent = histories.select(users, last=self._loss.history_mask_length)
        values = torch.from_numpy(self._items_of(recent.items).astype(np.int64))
        return values, torch.from_numpy(recent.offsets), torch.from_numpy(rows)
