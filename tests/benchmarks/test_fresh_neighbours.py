"""Shares of fresh neighbours, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.fresh_neighbours import fresh_shares, mean_cosine


def test_shares_by_hand() -> None:
    near = np.array([[2, 1], [0, 3], [0, 1], [1, 0]])
    fresh = np.array([False, False, True, True])
    topics = np.array(["a", "b", "a", ""])
    # Item 0: 2 (fresh, on topic), 1 (not on topic). Item 1: 0 (not on topic), 3 (fresh, without a topic).
    assert fresh_shares(near, fresh, topics) == pytest.approx((0.5, 0.5, 0.0))


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    vectors = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    vectors[2] = 0.5 * vectors[1]
    pairs = [(first, second) for first in range(6) for second in range(first)]
    naive = [
        float(np.dot(vectors[a], vectors[b]) / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b]))
        for a, b in pairs
    ]
    assert mean_cosine(vectors) == pytest.approx(np.mean(naive), abs=1e-6)
