"""AUC and normalised entropy against pairs counted one by one, and against TorchRec's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchrec.metrics.auc import compute_auc
from torchrec.metrics.ne import compute_cross_entropy, compute_ne

from mtmh.training.metrics import auc, normalized_entropy

RNG = np.random.default_rng(0)
LABELS = (RNG.random(300) < 0.3).astype(np.float32)
CHANCES = np.clip(0.3 + 0.2 * LABELS + RNG.normal(0.0, 0.2, 300), 0.01, 0.99).astype(np.float32)


def test_auc_counts_pairs_and_ties_half() -> None:
    tied = np.round(CHANCES, 1)
    positive, negative = tied[LABELS == 1], tied[LABELS == 0]
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    assert auc(tied, LABELS) == pytest.approx(np.mean(wins), abs=1e-12)


def test_normalized_entropy_is_its_formula() -> None:
    rate = float(LABELS.astype(np.float64).mean())
    total = sum(-math.log(p) if y else -math.log(1.0 - p) for p, y in zip(CHANCES.tolist(), LABELS, strict=True))
    mean = -(rate * math.log(rate) + (1.0 - rate) * math.log(1.0 - rate))
    assert normalized_entropy(CHANCES, LABELS) == pytest.approx(total / len(LABELS) / mean, rel=1e-9)
    assert normalized_entropy(np.full(300, rate), LABELS) == pytest.approx(1.0)


def test_both_agree_with_torchrec() -> None:
    labels, chances = torch.from_numpy(LABELS).double(), torch.from_numpy(CHANCES).double()
    weights = torch.ones_like(labels)
    theirs = compute_auc(1, [chances[None]], [labels[None]], [weights[None]])
    assert auc(CHANCES, LABELS) == pytest.approx(theirs.item(), abs=1e-6)
    entropy = compute_cross_entropy(labels, chances, weights, 1e-12).sum()
    ne = compute_ne(entropy, weights.sum(), labels.sum(), (1.0 - labels).sum(), 1e-12)
    assert normalized_entropy(CHANCES, LABELS) == pytest.approx(ne.item(), rel=1e-6)


def test_one_class_alone_has_neither() -> None:
    assert auc(CHANCES, np.ones(300)) is None
    assert normalized_entropy(CHANCES, np.zeros(300)) is None
