"""Time to quality: recall as training measures it, by hand, and the first look that is near the best."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.time_to_quality import Look, als_looks, reached_best, recall
from mtmh.data.dataset import EvaluationUsers
from mtmh.data.histories import Histories


def lists(*users: list[int]) -> Histories:
    return Histories(np.array([item for items in users for item in items]), np.cumsum([0, *map(len, users)]))


def test_recall_counts_what_a_user_had_not_had() -> None:
    users = EvaluationUsers(np.arange(3), lists([1], [2, 3], [4]), lists([5, 6, 1], [7], [4]))
    answers = np.array([[5, 0, -1], [8, 9, 7], [4, 0, 1]])  # the third user is asked for nothing new
    assert recall(answers, users) == pytest.approx((0.5 + 1.0) / 2)


def test_the_first_look_within_a_hundredth_of_the_best() -> None:
    looks = [Look(1, 2.0, 0.5), Look(2, 3.0, 0.995), Look(3, 5.0, 1.0), Look(4, 9.0, 0.99)]
    assert reached_best(looks) == (1.0, looks[1])


def test_als_finds_what_goes_together_and_leaves_out_what_a_user_had() -> None:
    """Two kinds of users; each is asked for the one item of the own kind that is missing."""
    pytest.importorskip("implicit")
    histories = lists(*[[item for item in range(10) if item != user] for user in range(10)])
    others = lists(*[list(range(10, 300)) for _ in range(10)])
    asked = EvaluationUsers(np.arange(10), histories, lists(*[[user] for user in range(10)]))
    looks = list(als_looks([histories, others], asked, 300, [1, 15], seed=0))
    assert [look.passes for look in looks] == [1, 15]
    assert looks[1].recall == 1.0
