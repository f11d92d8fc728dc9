"""Implicit alternating least squares (Hu, Koren and Volinsky, 2008), by the package ``implicit``."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from mtmh.data.arrays import Indices, Scores
from mtmh.evaluation.baselines import ContentSearch
from mtmh.retrieval.ranking import Candidates

FACTORS, REGULARIZATION, ALPHA, ITERATIONS = 128, 0.01, 1.0, 15


class Als:
    """Factors of users and items; a user is known by the history alone, the factors follow from it.

    Args:
        engaged: [U, I] of `engagement_matrix`, of the training period.
        seed: of the first factors.
        factors: of a user and an item.
        iterations: over users and items.

    Raises:
        ImportError: the package is not installed.
    """

    def __init__(
        self, engaged: sparse.csr_matrix, seed: int, factors: int = FACTORS, iterations: int = ITERATIONS
    ) -> None:
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits

        self._known = np.asarray(engaged.sum(axis=0)).ravel() > 0
        with threadpool_limits(1, "blas"):  # it brings its own threads, and warns of others
            self._model = AlternatingLeastSquares(
                factors=factors,
                regularization=REGULARIZATION,
                alpha=ALPHA,
                iterations=iterations,
                random_state=seed,
            )
            self._model.fit(engaged, show_progress=False)
        lengths = np.linalg.norm(self._model.item_factors, axis=1, keepdims=True)
        unit = np.where(self._known[:, None], self._model.item_factors / np.maximum(lengths, 1e-12), 0.0)
        self._neighbours = ContentSearch(unit.astype(np.float32))

    def score(self, histories: sparse.csr_matrix) -> Scores:
        """[B, I] histories -> [B, I] products of factors; -inf for items without a training event."""
        users = self._model.recalculate_user(np.arange(histories.shape[0]), histories)
        return np.where(self._known, users @ self._model.item_factors.T, np.float32(-np.inf))

    def search(self, triggers: Indices, k: int) -> Candidates:
        """The ``k`` items whose factors have the largest cosine to the trigger's. Returns [T, k]."""
        return self._neighbours.search(triggers, k)
