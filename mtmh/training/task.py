"""The training task: embeds a batch and computes its share of the global loss, the same on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from mtmh.config import LossConfig, SimWeightConfig, TrainingConfig
from mtmh.data.weights import cosine_at_least
from mtmh.distributed.content_table import ContentTable
from mtmh.modules.losses import Hits, Products, Similar, TeacherEmbeddings, contrastive_losses
from mtmh.modules.mtmh import MTMH
from mtmh.specs import Head
from mtmh.training.frequencies import StreamingFrequencies
from mtmh.training.grad_norm import GradNorm
from mtmh.training.semantic import label_pairs
from mtmh.training.shared_negatives import Draws, GlobalBatch, share_negatives


def items_per_step(training: TrainingConfig, loss: LossConfig) -> int:
    """Items that all ranks embed in a step, at most: triggers, positives and uniform negatives, all distinct."""
    return 2 * training.global_batch + loss.num_uniform_negatives


class TrainTask(nn.Module):
    """The model and its loss as one module, for DistributedModelParallel and TorchRec's pipelines.

    The loss is a module of its own so that the pipelines, which trace this forward symbolically to find the tables'
    inputs, take it as a leaf.

    Args:
        model: the towers and heads.
        loss: settings of the loss.
        seed: of the run; pseudo-labels follow it.
        frequencies: how often items are in a batch, for ``log_q = streaming``.
        directions: [Dc, P] of the teacher's embeddings, which distillation compares; None: the whole embeddings.
        content: the teacher's embeddings by item; None: they come with the batch.
        sim: how pairs weigh that are close by ``content``; None: the batch's weights tell.
        products: of the loss, see `contrastive_losses`.
    """

    def __init__(
        self,
        model: MTMH,
        loss: LossConfig,
        seed: int = 0,
        frequencies: StreamingFrequencies | None = None,
        directions: Tensor | None = None,
        content: ContentTable | None = None,
        sim: SimWeightConfig | None = None,
        products: Products = "float32",
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = GlobalLoss(model.heads, loss, seed, frequencies, directions, sim, products)
        self.content = content

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, Tensor]:
        """See `GlobalLoss`."""
        content = batch.content if self.content is None else self.content(batch.sparse)
        features = self.model.features(batch.sparse, batch.dense, content)
        return cast(tuple[Tensor, Tensor], self.loss(self.model.embeddings(features), batch, content, features))


class _Step(NamedTuple):
    """What all losses of a step are computed from."""

    by_head: list[Tensor]
    batch: GlobalBatch
    negatives: list[Tensor]  # by head
    content: Tensor  # of the negatives
    log_weight: Tensor
    teacher: TeacherEmbeddings | None


class GlobalLoss(nn.Module):
    """This rank's share of the loss over the pairs of all ranks.

    Each pair meets the same negatives on any number of ranks: all ranks' positives (in-batch negatives) and all ranks'
    uniform draws. The loss is the weighted mean over the global batch, that of the semantic task the mean over the
    pairs that have a pseudo-label; a rank returns its part of the sum, times the number of ranks, because DDP and
    TorchRec average the ranks' gradients.

    Args:
        heads: names and loss weights, in the model's order.
        config: settings.
        seed: of the run; pseudo-labels follow it.
        frequencies: how often items are in a batch, for ``log_q = streaming``; every forward is a step that it sees.
        directions: [Dc, P] of the teacher's embeddings; None: the whole embeddings.
        sim: how pairs weigh that are close by their content; None: the batch's weights tell.
        products: see `contrastive_losses`.
    """

    def __init__(
        self,
        heads: tuple[Head, ...],
        config: LossConfig,
        seed: int = 0,
        frequencies: StreamingFrequencies | None = None,
        directions: Tensor | None = None,
        sim: SimWeightConfig | None = None,
        products: Products = "float32",
    ) -> None:
        super().__init__()
        self._products = products
        assert (frequencies is not None) == (config.log_q == "streaming")
        self._frequencies = frequencies
        self._heads = heads
        self._config = config
        self._seed = seed
        # Log variances s of each loss of each head, engagement, relevance and semantic: it counts exp(-s) L + s / 2.
        self.log_variances = nn.Parameter(torch.zeros(3, len(heads))) if config.weighting == "uncertainty" else None
        weights = [(head.engagement_weight, head.relevance_weight, head.semantic_weight) for head in heads]
        self._weights = torch.tensor(weights).T
        self.grad_norm = GradNorm(self._weights, config.gradnorm) if config.weighting == "gradnorm" else None
        self._distils = any(head.relevance_weight > 0.0 for head in heads)
        assert directions is None or not any(head.semantic_weight > 0.0 for head in heads)
        self._directions = directions
        self._sim = sim

    def forward(
        self,
        embeddings: dict[str, Tensor],
        batch: GlobalBatch,
        content: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes the loss.

        Args:
            embeddings: head name to [U, D], rows as in ``batch``.
            batch: this rank's share of the global batch.
            content: [U, Dc] in place of that of the batch, if given.
            features: [U, F] that the embeddings are made of, for ``weighting = gradnorm``.

        Returns:
            loss [1] to differentiate; losses [3, num_heads], engagement, relevance and semantic, detached: added up
            over ranks they are the means over the global batch.
        """
        config = self._config
        if content is not None:
            batch = replace(batch, content=content)
        if self._sim is not None:
            close = cosine_at_least(batch.content, batch.trigger, batch.positive, self._sim.threshold)
            batch = replace(batch, weight=torch.where(close, batch.weight * self._sim.boost, batch.weight))
        if self._directions is not None:
            batch = replace(batch, content=functional.normalize(batch.content @ self._directions, dim=1))
        by_head = [embeddings[head.name] for head in self._heads]
        draws = batch.draws
        negatives, of_negatives = share_negatives(by_head, batch.content, draws)
        log_weight = draws.copies.float().log() - self._log_expected(draws, batch.step)
        teacher = None
        if self._distils:
            teacher = TeacherEmbeddings(
                trigger=batch.content.index_select(0, batch.trigger),
                positive=batch.content.index_select(0, batch.positive),
                negative=of_negatives,
                temperature=config.teacher_temperature,
            )
        step = _Step(by_head, batch, negatives, of_negatives, log_weight, teacher)
        if self.grad_norm is not None and torch.is_grad_enabled() and self.grad_norm.is_due(batch.step):
            assert features is not None
            self._balance(step, features)
        loss, losses = self._losses(step, dict(enumerate(self._weighted_heads())))
        if self.log_variances is not None:
            loss = loss + self._variance_terms(losses)
        return (loss * dist.get_world_size()).reshape(1), losses

    def _losses(self, step: _Step, heads: Mapping[int, Head]) -> tuple[Tensor, Tensor]:
        """The weighted sum of some heads' losses, and each of them, [3, len(heads)], detached.

        Args:
            step: what they are computed from.
            heads: place of a head -> its weights.
        """
        config, batch, draws = self._config, step.batch, step.batch.draws
        sums = contrastive_losses(
            trigger=[step.by_head[place].index_select(0, batch.trigger) for place in heads],
            positive=[step.by_head[place].index_select(0, batch.positive) for place in heads],
            negative=[step.negatives[place] for place in heads],
            heads=list(heads.values()),
            temperature=config.temperature,
            row_weight=batch.weight,
            log_weight_negative=step.log_weight,
            teacher=step.teacher,
            hits=draws.hits,
            chunk_rows=config.chunk_rows,
            kernel=config.kernel,
            products=self._products,
        )
        # Pairs of an item with itself weigh nothing. With no others there is nothing to learn, rather than 0 / 0.
        scale: float | Tensor = 1.0 / draws.total_weight if draws.total_weight else 0.0
        if self._sim is not None:  # weighs the pairs on the device
            scale = _inverse_total(batch.weight).to(sums.total)
        loss, parts = sums.total * scale, torch.stack([sums.engagement, sums.relevance]) * scale
        semantic = torch.zeros_like(parts[0])
        labelled = {place: head for place, head in heads.items() if head.semantic_weight > 0.0}
        if labelled:
            semantic_loss, of_heads = self._semantic_losses(step, labelled)
            found = dict(zip(labelled, of_heads.unbind(), strict=True))
            semantic = torch.stack(
                [found.get(place, zero) for place, zero in zip(heads, semantic.unbind(), strict=True)]
            )
            loss = loss + semantic_loss
        return loss, torch.cat([parts, semantic[None]]).detach()

    def _balance(self, step: _Step, features: Tensor) -> None:
        """Lets the weights follow the gradients of each loss alone: a pass and a backward to the features for each."""
        assert self.grad_norm is not None
        losses, gradients = torch.zeros_like(self.grad_norm.weights), []
        for kind, place in self._weights.nonzero().tolist():
            alone = [0.0, 0.0, 0.0]
            alone[kind] = 1.0
            loss, parts = self._losses(step, {place: Head(self._heads[place].name, *alone)})
            (gradient,) = torch.autograd.grad(loss, features, retain_graph=True)
            gradients.append(gradient)
            losses[kind, place] = parts[kind, 0]
        self.grad_norm.update(losses, gradients, features.detach())

    def _weighted_heads(self) -> tuple[Head, ...]:
        """The heads with the weights of this step."""
        if self.grad_norm is not None:
            weights = self.grad_norm.by_loss()
        elif self.log_variances is not None:
            weights = (self._weights.to(self.log_variances) * (-self.log_variances.detach()).exp()).T.tolist()
        else:
            return self._heads
        return tuple(Head(head.name, *of_head) for head, of_head in zip(self._heads, weights, strict=True))

    def _variance_terms(self, losses: Tensor) -> Tensor:
        """What the log variances add to this rank's share of the loss, and their gradient: that of exp(-s) L.

        Args:
            losses: [3, num_heads] this rank's share of the means, without gradient.
        """
        assert self.log_variances is not None
        weights = self._weights.to(losses)
        scaled = weights * losses * (-self.log_variances).exp()
        # The losses' own part is in the loss already: here it has a gradient for the variances and no value.
        own = (scaled - scaled.detach()).sum()
        return own + 0.5 * (self.log_variances * (weights > 0.0)).sum() / dist.get_world_size()

    def _log_expected(self, draws: Draws, step: int) -> Tensor:
        """Log of how often each negative is expected among the draws of a step, [L]."""
        if self._frequencies is not None:
            uniform = self._config.num_uniform_negatives / self._frequencies.num_known
            return (self._frequencies.observe(step + 1, draws.observed, draws.in_batch) + uniform).log()
        if self._config.log_q == "none":
            return torch.zeros_like(draws.log_q)
        return draws.log_q + math.log(draws.num_draws)

    def _semantic_losses(self, step: _Step, heads: Mapping[int, Head]) -> tuple[Tensor, Tensor]:
        """The semantic task: the sampled softmax with the pseudo-label as the positive; other aligned items left out.

        Returns:
            The weighted sum over the heads, all of which have it, and each one's own.
        """
        batch, negatives = step.batch, step.negatives
        pairs = label_pairs(batch, step.content, self._config.semantic, self._seed)
        num_pairs = len(pairs.label)
        sums = contrastive_losses(
            trigger=[step.by_head[place].index_select(0, pairs.trigger) for place in heads],
            positive=[negatives[place].index_select(0, pairs.label) for place in heads],
            negative=[negatives[place] for place in heads],
            heads=[Head(head.name, engagement_weight=head.semantic_weight) for head in heads.values()],
            temperature=self._config.temperature,
            row_weight=pairs.weight,
            log_weight_negative=step.log_weight,
            hits=Hits(torch.arange(num_pairs, device=pairs.label.device), pairs.label, [*range(num_pairs + 1)]),
            similar=Similar(
                batch.content.index_select(0, pairs.trigger), step.content, self._config.semantic.threshold
            ),
            chunk_rows=self._config.chunk_rows,
            kernel=self._config.kernel,
            products=self._products,
        )
        scale = _inverse_total(pairs.weight).to(sums.total)
        return sums.total * scale, sums.engagement * scale


def _inverse_total(weight: Tensor) -> Tensor:
    """One over the weight of the pairs of all ranks, or 0 if they have none; float64 and on their device."""
    total = weight.sum(dtype=torch.float64)
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return torch.where(total > 0.0, 1.0 / total, 0.0)
