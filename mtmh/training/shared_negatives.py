"""The negatives of a step: every rank's positives and uniform draws, on every rank.

Which items they are, how often each was drawn and which pair must not meet which of them follows from ids alone. The
hosts exchange that one step ahead, so that a GPU never waits for a host that asks it how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mtmh.config import LossConfig
from mtmh.data.batch import Movable, PairBatch
from mtmh.data.randomness import Purpose, mixed, salts, uniform
from mtmh.distributed.ranks import gather_rows
from mtmh.modules.losses import Hits
from mtmh.modules.masks import accidental_hits
from mtmh.training.frequencies import StreamingFrequencies
from mtmh.training.padding import padded


@dataclass
class Draws(Movable):
    """The distinct negatives that all pairs share, the same on every rank but for ``rows`` and what follows ``log_q``.

    Attributes:
        rows: [S] int64 rows of the batch's items that this rank gives to all, each once.
        source: [L] int64 place of each negative among the rows of all ranks, one rank after another.
        items: [L] int64 catalogue indices, ascending.
        copies: [L] int64, how often each was drawn.
        in_batch: [L] int64, how often as a pair's candidate.
        log_q: [L] float32, as in the batches.
        hit_rows: [K] int64 pairs of the batch, and with ``hit_columns`` [K] what they must not meet (`Hits`).
        hit_offsets: M + 1 places, see `Hits`.
        observed: [2, O] int64, see `StreamingFrequencies.places`; O = 0 without these.
        sizes: S of each rank.
        num_draws: of the global step.
        total_weight: of the pairs of all ranks.
    """

    rows: Tensor
    source: Tensor
    items: Tensor
    copies: Tensor
    in_batch: Tensor
    log_q: Tensor
    hit_rows: Tensor
    hit_columns: Tensor
    hit_offsets: list[int]
    observed: Tensor
    sizes: list[int]
    num_draws: int
    total_weight: float

    @property
    def hits(self) -> Hits:
        """Pairs and negatives that must not meet."""
        return Hits(self.hit_rows, self.hit_columns, self.hit_offsets)


@dataclass
class GlobalBatch(PairBatch):
    """A rank's share of a step, and the negatives that it shares with the others.

    Attributes:
        draws: on the device of the batch.
    """

    draws: Draws


def with_draws(
    batches: Iterator[PairBatch],
    loss: LossConfig,
    seed: int = 0,
    frequencies: StreamingFrequencies | None = None,
    multiple_of: int = 1,
) -> Iterator[GlobalBatch]:
    """Exchanges the ids of a step while the one before it is computed; all ranks iterate together.

    Ranks exchange in the thread that iterates, one batch further than it has asked for, and a thread of its own takes
    in what comes. Batches are padded to one number of items, see `padded`.

    Args:
        batches: of this rank, on the host.
        loss: which of the pairs' candidates are negatives too, how many draws there are.
        seed: the run's.
        frequencies: which of the negatives they know on this rank is looked up.
        multiple_of: the number of items is rounded up to a multiple of this.
    """
    with ThreadPoolExecutor(1, "draws") as thread:
        waiting: Future[GlobalBatch] | None = None
        for batch in batches:
            coming = thread.submit(_Exchange(batch, loss, seed).batch, frequencies, multiple_of)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


class _Exchange:
    """Sends what a batch tells the other ranks when it is made."""

    def __init__(self, batch: PairBatch, loss: LossConfig, seed: int) -> None:
        num_items = len(batch.item_index)
        in_batch = torch.bincount(shared_candidates(batch, loss.in_batch_share, seed), minlength=num_items)
        if not loss.in_batch_negatives:
            in_batch = torch.zeros_like(in_batch)
        copies = in_batch + torch.bincount(batch.uniform, minlength=num_items)
        self._batch = batch
        self._rows = rows = copies.nonzero().squeeze(1)
        total = batch.weight.sum(dtype=torch.float64)
        head = torch.tensor([[len(rows), num_items, int(total.view(torch.int64)), 0]])
        log_q = batch.log_q[rows].double().view(torch.int64)  # the same bits, so that they travel along
        facts = torch.cat([head, torch.stack([batch.item_index[rows], copies[rows], in_batch[rows], log_q], dim=1)])
        self._work = None
        world_size = dist.get_world_size()
        if world_size > 1:
            most = 1 + len(batch.positive) + -(-loss.num_uniform_negatives // world_size)  # the same on all ranks
            own = facts.new_zeros(most, facts.shape[1])
            own[: len(facts)] = facts
            facts = facts.new_empty(world_size * most, facts.shape[1])
            self._work = dist.all_gather_into_tensor(facts, own, async_op=True)
        self._facts = facts.view(world_size, -1, facts.shape[1])

    def batch(self, frequencies: StreamingFrequencies | None, multiple_of: int) -> GlobalBatch:
        """The batch with what has come from the others."""
        if self._work is not None:
            self._work.wait()
        batch, heads = self._batch, self._facts[:, 0]
        sizes = heads[:, 0].tolist()
        parts = [part[1 : 1 + size] for part, size in zip(self._facts, sizes, strict=True)]
        items, copies, in_batch, log_q = torch.cat(parts).unbind(1)
        items, source = items.contiguous(), torch.arange(len(items))
        num_draws = int(copies.sum())
        if len(sizes) > 1:
            items, column = torch.unique(items, return_inverse=True)
            copies, in_batch = (torch.zeros_like(items).index_add_(0, column, part) for part in (copies, in_batch))
            source = torch.empty_like(items).scatter_reduce_(0, column, source, "amin", include_self=False)
            log_q = log_q.index_select(0, source)
        hits = hits_of(batch, items)
        draws = Draws(
            rows=self._rows,
            source=source,
            items=items,
            copies=copies.contiguous(),
            in_batch=in_batch.contiguous(),
            log_q=log_q.contiguous().view(torch.float64).float(),
            hit_rows=hits.rows,
            hit_columns=hits.columns,
            hit_offsets=hits.offsets,
            observed=torch.empty(2, 0, dtype=torch.int64) if frequencies is None else frequencies.places(items),
            sizes=sizes,
            num_draws=num_draws,
            total_weight=sum(heads[:, 2].contiguous().view(torch.float64).tolist()),
        )
        batch = padded(batch, -(-int(heads[:, 1].max()) // multiple_of) * multiple_of)
        return GlobalBatch(**vars(batch), draws=draws.pin_memory() if batch.dense.is_pinned() else draws)


def share_negatives(by_head: list[Tensor], content: Tensor, draws: Draws) -> tuple[list[Tensor], Tensor]:
    """Exchanges the negatives' embeddings; gradients flow back to the rank that embedded them.

    Popular items come up many times among the draws. A draw that comes ``c`` times is one column whose probability is
    ``c`` times as large: ``log c`` added to its logit, for the model and for the teacher, leaves both losses and all
    gradients as they are and makes the matrices narrower. So does one copy of an item that several ranks embedded: the
    weights that its gradient reaches are the same by either.

    Args:
        by_head: [U, D] each, of the batch's items.
        content: [U, Dc] of them.
        draws: of the step.

    Returns:
        For each head [L, D]; content [L, Dc].
    """
    embeddings = torch.cat([part.index_select(0, draws.rows) for part in by_head], dim=1)
    embeddings = gather_rows(embeddings, draws.sizes)
    content = content.index_select(0, draws.rows)
    content = gather_rows(content, draws.sizes) if content.shape[1] else content.new_empty(sum(draws.sizes), 0)
    if len(draws.sizes) > 1:
        embeddings, content = (part.index_select(0, draws.source) for part in (embeddings, content))
    return list(torch.split(embeddings, [part.shape[1] for part in by_head], dim=1)), content


def shared_candidates(batch: PairBatch, share: float, seed: int) -> Tensor:
    """Candidates of about so large a share of the pairs, a hash of seed, step and pair: rows of the batch's items."""
    if share == 1.0:
        return batch.positive
    (salt,) = salts(Purpose.SHARED_CANDIDATES, seed, batch.step, num=1)
    pair = mixed(batch.item_index[batch.trigger], salt) ^ batch.item_index[batch.positive]
    return batch.positive[uniform(mixed(pair, salt)) < share]


def hits_of(batch: PairBatch, negative_items: Tensor) -> Hits:
    """Pairs and negatives that must not meet: items of the user's history, the pair's own trigger and positive.

    Args:
        batch: ``M`` pairs.
        negative_items: [L] int64 catalogue indices.
    """
    num_pairs = len(batch.trigger)
    of_history = accidental_hits(batch.history_values, batch.history_offsets, batch.history_row, negative_items)
    pair = torch.arange(num_pairs + 1)
    own_items = batch.item_index[torch.stack([batch.trigger, batch.positive], dim=1).view(-1)]
    of_pair = accidental_hits(own_items, 2 * pair, pair[:-1], negative_items)
    rows, columns = (torch.cat(both) for both in zip(of_history, of_pair, strict=True))
    return Hits.sort((rows, columns), num_pairs, len(negative_items))
