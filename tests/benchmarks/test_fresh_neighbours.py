"""Shares of fresh neighbours, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.fresh_neighbours import fresh_shares


def test_shares_by_hand() -> None:
    near = np.array([[2, 1], [0, 3], [0, 1], [1, 0]])
    fresh = np.array([False, False, True, True])
    topics = np.array(["a", "b", "a", ""])
    # Item 0: 2 (fresh, on topic), 1 (not on topic). Item 1: 0 (not on topic), 3 (fresh, without a topic).
    assert fresh_shares(near, fresh, topics) == pytest.approx((0.5, 0.5, 0.0))
