"""The preranker's loss: engagements against shared negatives, and labels among engagements; the same on any ranks."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mtmh.distributed.ranks import gather_numbers, gather_rows
from mtmh.modules.preranker import Preranker
from mtmh.preranking.examples import ExampleBatch

CHUNK_LOGITS = 4_194_304  # logits of examples against negatives that are held at a time


class PrerankerTask(nn.Module):
    """The model and its loss as one module, for DistributedModelParallel and TorchRec's pipelines.

    Args:
        model: items to vectors, users to queries.
        in_batch_negatives: whether the other examples' items are negatives.
    """

    def __init__(self, model: Preranker, in_batch_negatives: bool) -> None:
        super().__init__()
        self.model = model
        self.loss = PrerankerLoss(in_batch_negatives)

    def forward(self, batch: ExampleBatch) -> tuple[Tensor, Tensor]:
        """See `PrerankerLoss`."""
        vectors = self.model(batch.sparse, batch.dense, batch.content)
        directions = vectors[:, : self.model.dim]
        queries, biases = self.model.user_tower(directions, batch.history, batch.history_offsets, batch.trigger)
        return cast(tuple[Tensor, Tensor], self.loss(queries, biases, vectors, batch))


class PrerankerLoss(nn.Module):
    """This rank's share of the loss over the examples of all ranks.

    The engagement is learned by sampled softmax with the correction for sampling (Jean et al., 2015; Yi et al., 2019):
    with ``k`` negatives an example, each of them item ``j`` with probability ``q_j``,

        log Z = log(exp(s_positive) + sum_j exp(s_j - log(k q_j)))

    stands for the sum over the catalogue, and the loss is ``log Z - s_positive``. A softmax leaves each user's bias
    free; it is learned so that ``log Z`` is 0 (by ``(log Z)^2``, after Devlin et al., 2014, whose gradient reaches
    nothing but the bias). So ``exp(s_j)`` is the probability that the user's next engagement is item ``j``, whatever
    the number of negatives and however they were drawn. Negatives come from the whole catalogue, and none is left out
    for being in the user's history; an example is no negative of itself.

    A label's query is learned by the cross-entropy among engagements, where it is known: its sigmoid is the probability
    of the label, given the engagement.

    Args:
        in_batch_negatives: whether the items of the other examples of the global batch are negatives.
    """

    def __init__(self, in_batch_negatives: bool) -> None:
        super().__init__()
        self._in_batch = in_batch_negatives

    def forward(self, queries: Tensor, biases: Tensor, vectors: Tensor, batch: ExampleBatch) -> tuple[Tensor, Tensor]:
        """Computes the loss.

        Args:
            queries: [M, K, W], query 0 for the engagement, then one a label.
            biases: [M, K].
            vectors: [U, W] of the items of ``batch``.
            batch: this rank's share of the global batch.

        Returns:
            loss [1] to differentiate: the ranks' losses average to the mean over the global batch's examples of the sum
            of all cross-entropies; losses [1, K], detached: added up over ranks they are each query's mean.
        """
        positive = vectors.index_select(0, batch.positive)
        own = torch.einsum("mkd,md->mk", queries, positive) + biases
        draws = torch.cat([batch.positive, batch.uniform]) if self._in_batch else batch.uniform
        copies = torch.bincount(draws, minlength=len(vectors))
        rows = copies.nonzero().squeeze(1)
        counts = torch.tensor([len(rows), len(draws), len(batch.positive)], dtype=torch.float64, device=vectors.device)
        gathered = gather_numbers(counts)
        sizes = [int(size) for size, _, _ in gathered]
        num_examples = sum(number for _, _, number in gathered)
        # Of an example: all draws but its own item.
        log_draws = math.log(sum(number for _, number, _ in gathered) - float(self._in_batch))
        negatives = gather_rows(vectors.index_select(0, rows), sizes)
        facts = gather_rows(torch.stack([batch.log_q[rows], copies[rows].to(batch.log_q.dtype)], dim=1), sizes)
        # An item that was drawn c times is one column that counts c times.
        offset = (facts[:, 1].log() - facts[:, 0] - log_draws).to(queries.dtype)
        own_column, without_own = self._own_columns(batch.positive, copies, rows, sum(sizes[: dist.get_rank()]))

        log_z = _log_partition(queries[:, 0], own[:, 0] - biases[:, 0], negatives, offset, own_column, without_own)
        engagement = (log_z - (own[:, 0] - biases[:, 0])).sum()
        bias = (log_z.detach() + biases[:, 0]).square().sum()
        labels = functional.binary_cross_entropy_with_logits(own[:, 1:], batch.labels.to(own.dtype), reduction="none")
        losses = torch.cat([engagement.reshape(1), labels.sum(dim=0)]) / num_examples
        total = losses.sum() + bias / num_examples
        return (total * dist.get_world_size()).reshape(1), losses.detach()[None, :]

    def _own_columns(self, positive: Tensor, copies: Tensor, rows: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """The column of each example's item among the negatives [M], and what its logit changes by without one copy.

        Without in-batch negatives nothing changes: the change is 0 then.
        """
        column = torch.zeros_like(copies)
        column[rows] = torch.arange(first, first + len(rows), device=rows.device)
        if not self._in_batch:
            return column[positive], torch.zeros(len(positive), device=positive.device)
        count = copies[positive].float()
        return column[positive], ((count - 1.0) / count).log()


def _log_partition(
    queries: Tensor, positive: Tensor, negatives: Tensor, offset: Tensor, own_column: Tensor, without_own: Tensor
) -> Tensor:
    """Logs of the sums over positive and negatives [M], without the users' biases; logits are held in chunks only."""

    def part(queries: Tensor, positive: Tensor, negatives: Tensor, own: Tensor, change: Tensor) -> Tensor:
        logits = torch.addmm(offset, queries, negatives.T)
        logits = logits.scatter_add(1, own[:, None], change.to(logits.dtype)[:, None])
        return torch.cat([positive[:, None], logits], dim=1).logsumexp(dim=1)

    rows = max(1, CHUNK_LOGITS // max(1, len(negatives)))
    if len(queries) <= rows:
        return part(queries, positive, negatives, own_column, without_own)
    chunks = [
        checkpoint(
            part,
            queries[first : first + rows],
            positive[first : first + rows],
            negatives,
            own_column[first : first + rows],
            without_own[first : first + rows],
            use_reentrant=False,
        )
        for first in range(0, len(queries), rows)
    ]
    return torch.cat(chunks)
