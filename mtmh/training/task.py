"""The training task: embeds a batch and computes its share of the global loss, the same on any number of ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtmh.config import LossConfig
from mtmh.data.batch import PairBatch
from mtmh.modules.heads import Head
from mtmh.modules.losses import Teacher, contrastive_losses
from mtmh.modules.masks import accidental_hits
from mtmh.modules.mtmh import MTMH
from mtmh.training.distributed import gather_numbers, gather_rows


class TrainTask(nn.Module):
    """The model and its loss as one module, for DistributedModelParallel and TorchRec's pipelines.

    The loss is a module of its own so that the pipelines, which trace this forward symbolically to find the tables'
    inputs, take it as a leaf.

    Args:
        model: the towers and heads.
        loss: settings of the loss.
    """

    def __init__(self, model: MTMH, loss: LossConfig) -> None:
        super().__init__()
        self.model = model
        self.loss = GlobalLoss(model.heads, loss)

    def forward(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """See `GlobalLoss`."""
        return cast(tuple[Tensor, Tensor], self.loss(self.model(batch.sparse, batch.dense), batch))


class GlobalLoss(nn.Module):
    """This rank's share of the loss over the pairs of all ranks.

    Each pair meets the same negatives on any number of ranks: all ranks' positives (in-batch negatives) and all ranks'
    uniform draws. The loss is the weighted mean over the global batch; a rank returns its part of the sum, times the
    number of ranks, because DDP and TorchRec average the ranks' gradients.

    Args:
        heads: names and loss weights, in the model's order.
        config: settings.
    """

    def __init__(self, heads: tuple[Head, ...], config: LossConfig) -> None:
        super().__init__()
        self._heads = heads
        self._config = config
        self._distils = any(head.relevance_weight > 0.0 for head in heads)

    def forward(self, embeddings: dict[str, Tensor], batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Computes the loss.

        Args:
            embeddings: head name to [U, D], rows as in ``batch``.
            batch: this rank's share of the global batch.

        Returns:
            loss [1] to differentiate; losses [2, num_heads], engagement and relevance, detached: added up over ranks
            they are the means over the global batch.
        """
        config = self._config
        by_head = [embeddings[head.name] for head in self._heads]
        negatives = _share_negatives(by_head, batch, config)
        teacher = None
        if self._distils:
            teacher = Teacher(
                trigger=batch.content.index_select(0, batch.trigger),
                positive=batch.content.index_select(0, batch.positive),
                negative=negatives.content,
                temperature=config.teacher_temperature,
            )
        sums = contrastive_losses(
            trigger=[rows.index_select(0, batch.trigger) for rows in by_head],
            positive=[rows.index_select(0, batch.positive) for rows in by_head],
            negative=negatives.embeddings,
            heads=self._heads,
            temperature=config.temperature,
            row_weight=batch.weight,
            log_weight_negative=negatives.log_weight,
            teacher=teacher,
            hits=_accidental_hits(batch, negatives.items),
            chunk_rows=config.chunk_rows,
        )
        # Pairs of an item with itself weigh nothing. With no others there is nothing to learn, rather than 0 / 0.
        scale = 1.0 / negatives.total_weight if negatives.total_weight else 0.0
        loss = sums.total * (scale * dist.get_world_size())
        return loss.reshape(1), torch.stack([sums.engagement, sums.relevance]).detach() * scale


@dataclass(frozen=True)
class _Negatives:
    """The distinct negatives that all pairs share.

    Attributes:
        embeddings: for each head [L, D].
        items: [L] int64 catalogue indices, ascending if of several ranks.
        log_weight: [L] float32, log of how often each was drawn over how often it was expected.
        content: [L, Dc] float32.
        total_weight: of the pairs of all ranks.
    """

    embeddings: list[Tensor]
    items: Tensor
    log_weight: Tensor
    content: Tensor
    total_weight: float


def _share_negatives(by_head: list[Tensor], batch: PairBatch, config: LossConfig) -> _Negatives:
    """Exchanges the ranks' negatives; gradients flow back to the rank that embedded them.

    Popular items come up many times among the draws. A draw that comes ``c`` times is one column whose probability is
    ``c`` times as large: ``log c`` added to its logit, for the model and for the teacher, leaves both losses and all
    gradients as they are and makes the matrices narrower. So does one copy of an item that several ranks embedded: the
    weights that its gradient reaches are the same by either.
    """
    draws = torch.cat([batch.positive, batch.uniform]) if config.in_batch_negatives else batch.uniform
    copies = torch.bincount(draws, minlength=len(batch.item_index))
    rows = copies.nonzero().squeeze(1)
    # One exchange for all that the host must know.
    counts = batch.weight.new_tensor([len(rows), len(draws), 0.0], dtype=torch.float64)
    counts[2] = batch.weight.sum(dtype=torch.float64)
    columns = gather_numbers(counts)
    sizes = [int(size) for size, _, _ in columns]
    num_draws = sum(number for _, number, _ in columns)
    embeddings = gather_rows(torch.cat([part.index_select(0, rows) for part in by_head], dim=1), sizes)
    items, copies = gather_rows(torch.stack([batch.item_index[rows], copies[rows]], dim=1), sizes).unbind(1)
    facts = gather_rows(torch.cat([batch.log_q[rows, None], batch.content.index_select(0, rows)], dim=1), sizes)
    if len(sizes) > 1:
        items, column = torch.unique(items, return_inverse=True)
        copies = torch.zeros_like(items).index_add_(0, column, copies)
        one_of = torch.empty_like(items).scatter_reduce_(
            0, column, torch.arange(len(column), device=column.device), "amin", include_self=False
        )
        embeddings, facts = embeddings.index_select(0, one_of), facts.index_select(0, one_of)
    log_expected = facts[:, 0] + math.log(num_draws) if config.log_q else torch.zeros_like(facts[:, 0])
    return _Negatives(
        embeddings=list(torch.split(embeddings, [part.shape[1] for part in by_head], dim=1)),
        items=items,
        log_weight=copies.float().log() - log_expected,
        content=facts[:, 1:],
        total_weight=sum(weight for _, _, weight in columns),
    )


def _accidental_hits(batch: PairBatch, negative_items: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs and negatives that must not meet: items of the user's history, the pair's own trigger and positive."""
    num_pairs = len(batch.trigger)
    of_history = accidental_hits(batch.history_values, batch.history_offsets, batch.history_row, negative_items)
    pair = torch.arange(num_pairs + 1, device=batch.trigger.device)
    own_items = batch.item_index[torch.stack([batch.trigger, batch.positive], dim=1).view(-1)]
    of_pair = accidental_hits(own_items, 2 * pair, pair[:-1], negative_items)
    return torch.cat([of_history[0], of_pair[0]]), torch.cat([of_history[1], of_pair[1]])
