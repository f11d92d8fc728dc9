"""Pseudo-labels of the pairs of a step, the same on any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtmh.config import SemanticConfig
from mtmh.data.randomness import Purpose, mixed, salts, uniform
from mtmh.modules.semantic import NONE, pseudo_labels
from mtmh.training.shared_negatives import GlobalBatch


@dataclass(frozen=True)
class LabelledPairs:
    """Pairs whose trigger has a pseudo-label.

    Attributes:
        trigger: [P] int64 rows of the batch's items.
        label: [P] int64 columns of the shared negatives.
        weight: [P] float32, the pairs' own.
    """

    trigger: Tensor
    label: Tensor
    weight: Tensor


def label_pairs(batch: GlobalBatch, content: Tensor, config: SemanticConfig, seed: int) -> LabelledPairs:
    """Labels this rank's pairs with items of the global step.

    All choices are hashes of the seed, the step and the items: they depend neither on the ranks nor on what was drawn
    before.

    Args:
        batch: this rank's share of the global batch.
        content: [L, Dc] of the shared negatives.
        config: threshold, and the share of pairs that take part.
        seed: the run's.
    """
    salt = salts(Purpose.PSEUDO_LABELS, seed, batch.step, num=3)
    trigger = batch.item_index[batch.trigger]
    pair = mixed(trigger, salt[0]) ^ batch.item_index[batch.positive]
    pairs = ((uniform(mixed(pair, salt[0])) < config.share) & (batch.weight > 0.0)).nonzero().squeeze(1)
    items = batch.draws.items
    own = torch.searchsorted(items, trigger[pairs])
    found = items[own.clamp(max=len(items) - 1)] == trigger[pairs]
    labels = pseudo_labels(
        batch.content.index_select(0, batch.trigger[pairs]),
        content,
        torch.where(found, own, NONE),
        threshold=config.threshold,
        row_draw=uniform(mixed(pair[pairs], salt[1])),
        candidate_draw=uniform(mixed(items, salt[2])),
    )
    labelled = (labels != NONE).nonzero().squeeze(1)
    pairs = pairs[labelled]
    return LabelledPairs(batch.trigger[pairs], labels[labelled], batch.weight[pairs])
