"""The negatives of a step: every rank's positives and uniform draws, on every rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtmh.config import LossConfig
from mtmh.data.batch import PairBatch
from mtmh.data.randomness import Purpose, mixed, salts, uniform
from mtmh.distributed.ranks import gather_numbers, gather_rows
from mtmh.modules.masks import accidental_hits


@dataclass(frozen=True)
class SharedNegatives:
    """The distinct negatives that all pairs share, the same on every rank.

    Attributes:
        embeddings: for each head [L, D].
        items: [L] int64 catalogue indices, ascending.
        copies: [L] int64, how often each was drawn.
        in_batch: [L] int64, how often as a pair's candidate.
        log_q: [L] float32, as in the batches.
        content: [L, Dc] float32.
        num_draws: of the global step.
        total_weight: of the pairs of all ranks.
    """

    embeddings: list[Tensor]
    items: Tensor
    copies: Tensor
    in_batch: Tensor
    log_q: Tensor
    content: Tensor
    num_draws: int
    total_weight: float


def share_negatives(by_head: list[Tensor], batch: PairBatch, config: LossConfig, seed: int = 0) -> SharedNegatives:
    """Exchanges the ranks' negatives; gradients flow back to the rank that embedded them.

    Popular items come up many times among the draws. A draw that comes ``c`` times is one column whose probability is
    ``c`` times as large: ``log c`` added to its logit, for the model and for the teacher, leaves both losses and all
    gradients as they are and makes the matrices narrower. So does one copy of an item that several ranks embedded: the
    weights that its gradient reaches are the same by either.

    Args:
        by_head: [U, D] each.
        batch: this rank's share of the global batch.
        config: which of the pairs' candidates are negatives too.
        seed: the run's.
    """
    num_items = len(batch.item_index)
    in_batch = torch.bincount(shared_candidates(batch, config.in_batch_share, seed), minlength=num_items)
    if not config.in_batch_negatives:
        in_batch = torch.zeros_like(in_batch)
    copies = in_batch + torch.bincount(batch.uniform, minlength=num_items)
    rows = copies.nonzero().squeeze(1)
    # One exchange for all that the host must know.
    totals = torch.stack([copies.sum().double(), batch.weight.sum(dtype=torch.float64)])
    gathered = gather_numbers(torch.cat([totals.new_tensor([len(rows)]), totals]))
    sizes = [int(size) for size, _, _ in gathered]
    embeddings = gather_rows(torch.cat([part.index_select(0, rows) for part in by_head], dim=1), sizes)
    log_q = batch.log_q[rows].double().view(torch.int64)  # the same bits, so that they travel along
    facts = torch.stack([batch.item_index[rows], copies[rows], in_batch[rows], log_q], dim=1)
    items, copies, in_batch, log_q = gather_rows(facts, sizes).unbind(1)
    content = batch.content.index_select(0, rows)
    content = gather_rows(content, sizes) if content.shape[1] else content.new_empty(sum(sizes), 0)
    if len(sizes) > 1:
        items, column = torch.unique(items, return_inverse=True)
        copies, in_batch = (torch.zeros_like(items).index_add_(0, column, part) for part in (copies, in_batch))
        one_of = torch.empty_like(items).scatter_reduce_(
            0, column, torch.arange(len(column), device=column.device), "amin", include_self=False
        )
        embeddings, log_q, content = (part.index_select(0, one_of) for part in (embeddings, log_q, content))
    return SharedNegatives(
        embeddings=list(torch.split(embeddings, [part.shape[1] for part in by_head], dim=1)),
        items=items.contiguous(),
        copies=copies,
        in_batch=in_batch,
        log_q=log_q.contiguous().view(torch.float64).float(),
        content=content,
        num_draws=int(sum(number for _, number, _ in gathered)),
        total_weight=sum(weight for _, _, weight in gathered),
    )


def shared_candidates(batch: PairBatch, share: float, seed: int) -> Tensor:
    """Candidates of about so large a share of the pairs, a hash of seed, step and pair: rows of the batch's items."""
    if share == 1.0:
        return batch.positive
    (salt,) = salts(Purpose.SHARED_CANDIDATES, seed, batch.step, num=1)
    pair = mixed(batch.item_index[batch.trigger], salt) ^ batch.item_index[batch.positive]
    return batch.positive[uniform(mixed(pair, salt)) < share]


def hits_of(batch: PairBatch, negative_items: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs and negatives that must not meet: items of the user's history, the pair's own trigger and positive.

    Args:
        batch: ``M`` pairs.
        negative_items: [L] int64 catalogue indices.

    Returns:
        Rows and columns, as `accidental_hits` gives them; a pair may be there twice.
    """
    num_pairs = len(batch.trigger)
    of_history = accidental_hits(batch.history_values, batch.history_offsets, batch.history_row, negative_items)
    pair = torch.arange(num_pairs + 1, device=batch.trigger.device)
    own_items = batch.item_index[torch.stack([batch.trigger, batch.positive], dim=1).view(-1)]
    of_pair = accidental_hits(own_items, 2 * pair, pair[:-1], negative_items)
    return torch.cat([of_history[0], of_pair[0]]), torch.cat([of_history[1], of_pair[1]])
