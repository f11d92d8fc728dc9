"""EASE, a linear autoencoder in closed form (Steck, "Embarrassingly shallow autoencoders for sparse data", 2019)."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from mtmh.data.arrays import Indices, Scores
from mtmh.preranking.neighbours import linear_weights
from mtmh.retrieval.ranking import Candidates

MOST_ITEMS = 20_000  # with a training event; 1.6 GB a matrix
_SCORED = 4_194_304  # weights at a time


class Ease:
    """Weights between all items with a training event; the weight of an item for itself is 0.

    Args:
        engaged: [U, I] of `engagement_matrix`, of the training period.
        regularization: lambda of the paper.
    """

    def __init__(self, engaged: sparse.csr_matrix, regularization: float) -> None:
        self._items = np.flatnonzero(np.asarray(engaged.sum(axis=0)).ravel())
        self._place = np.full(engaged.shape[1], -1)
        self._place[self._items] = np.arange(len(self._items))
        self._weights = linear_weights(engaged[:, self._items], regularization)

    def score(self, histories: sparse.csr_matrix) -> Scores:
        """[B, I] histories -> [B, I] sums of weights; -inf for items without a training event."""
        scores = np.full(histories.shape, -np.inf, np.float32)
        scores[:, self._items] = histories[:, self._items] @ self._weights
        return scores

    def search(self, triggers: Indices, k: int) -> Candidates:
        """The ``k`` items that a trigger alone gives the largest weights. Returns [T, k]."""
        items = np.full((len(triggers), k), -1, np.int32)
        scores = np.full((len(triggers), k), -np.inf, np.float32)
        rows = np.flatnonzero(self._place[triggers] >= 0)
        width, block = min(k, len(self._items) - 1), max(1, _SCORED // max(1, len(self._items)))
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            places = self._place[triggers[part]]
            weights = self._weights[places]
            weights[np.arange(len(part)), places] = -np.inf
            best, found = torch.topk(torch.from_numpy(weights), width, dim=1)
            items[part, :width], scores[part, :width] = self._items[found.numpy()], best.numpy()
        return Candidates("EASE", items, scores)
