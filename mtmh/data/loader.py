"""Training batches: pairs, negatives and item inputs of each step, the same global step on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mtmh.config import LossConfig, ModelConfig, PairsConfig, TrainingConfig
from mtmh.data.batch import PairBatch
from mtmh.data.content_store import ContentEmbeddings
from mtmh.data.dataset import Dataset
from mtmh.data.distinct import Distinct
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
        self._content = content
        self._pin_memory = pin_memory
        self._table = dataset.item_table
        if not self._table.train_count.any():
            raise ValueError(f"{dataset.artifact.path}: no item has training events (item_table/train_count.npy)")
        self._pairs = WindowPairs(pairs.window, pairs.direction)
        self._plan = PairPlan(dataset.history_reader(), self._pairs, training, seed)
        self._weights = PairWeights(pairs.sim, loss.propensity, self._table, content is not None)
        self._negatives = UniformNegatives(self._table.train_count, loss.num_uniform_negatives, seed)
        in_batch = training.global_batch if loss.in_batch_negatives else 0
        self._log_q = (
            NegativeLogProbability(self._table.train_count, in_batch=in_batch, uniform=loss.num_uniform_negatives)
            if loss.log_q == "counts"
            else None
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
        reader = self._dataset.history_reader(cached_groups=len(self._shards) + 1)
        stream = PairStream(reader, self._plan, self._pairs, self._shards)
        distinct = Distinct()
        for step in range(start_step, self.num_steps):
            epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
            batch = self._assemble(stream.read(epoch, step_of_epoch), distinct, epoch, step)
            yield batch.pin_memory() if self._pin_memory else batch

    def _assemble(self, step_pairs: StepPairs[Pairs], distinct: Distinct, epoch: int, step: int) -> PairBatch:
        pairs = step_pairs.pairs
        uniform = self._negatives.draw(epoch, step, self._rank, self._world_size)
        items, rows = distinct(np.concatenate([pairs.trigger, pairs.candidate, uniform]), self._dataset.num_items)
        trigger, positive, uniform_rows = np.split(rows, [len(pairs.trigger), 2 * len(pairs.trigger)])
        dropout = self._model.id_dropout
        hidden = chosen(items, dropout, Purpose.ID_DROPOUT, self._seed, step) if dropout else None
        sparse, dense = self._table.gather(items, hidden, raw=self._model.id_tables)
        content = torch.empty(len(items), 0) if self._content is None else self._content.gather(items)
        log_q = np.zeros(len(items), np.float32) if self._log_q is None else self._log_q(items)
        history_values, history_offsets, history_row = self._histories(step_pairs, distinct)
        return PairBatch(
            sparse=sparse,
            dense=dense,
            item_index=torch.from_numpy(items),
            trigger=torch.from_numpy(trigger),
            positive=torch.from_numpy(positive),
            weight=self._weights(items, trigger, positive, content),
            uniform=torch.from_numpy(uniform_rows),
            log_q=torch.from_numpy(log_q),
            content=content,
            history_values=history_values,
            history_offsets=history_offsets,
            history_row=history_row,
            step=step,
            epoch=epoch,
        )

    def _histories(self, step_pairs: StepPairs[Pairs], distinct: Distinct) -> tuple[Tensor, Tensor, Tensor]:
        """Values, offsets and rows of the masks' histories."""
        if not self._loss.mask_history:
            no_row = torch.zeros(len(step_pairs.pairs.row), dtype=torch.int64)
            return torch.empty(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), no_row
        histories = step_pairs.histories
        users, rows = distinct(step_pairs.pairs.row, len(histories.offsets) - 1)
        recent = histories.select(users, last=self._loss.history_mask_length)
        return torch.from_numpy(recent.items.astype(np.int64)), torch.from_numpy(recent.offsets), torch.from_numpy(rows)
