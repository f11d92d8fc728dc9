"""Distinct items of users by number, and lists out of them, beside plain Python."""

from __future__ import annotations

import numpy as np

from mtmh.data.arrays import Indices, Scores
from mtmh.evaluation.user_items import UserItems


def user_lists(users: Indices, items: Indices, scores: Scores, num_users: int, length: int) -> Indices:
    """Lists of the best score of each item."""
    pairs, (numbers,) = UserItems.number([users], [items], num_users)
    best = np.full(len(pairs.keys) + 1, -np.inf, np.float32)
    np.maximum.at(best, numbers, scores)
    return pairs.lists(pairs.by_score(best[:-1]), length)


def test_an_item_of_several_triggers_counts_once_with_its_best_score() -> None:
    users, items = np.array([0, 0, 2]), np.array([[5, 6, -1], [6, 7, 8], [9, -1, -1]])
    scores = np.array([[0.9, 0.1, -np.inf], [0.5, 0.95, 0.5], [-0.2, -np.inf, -np.inf]], np.float32)
    # 6 and 8 tie: the lower item index first.
    assert user_lists(users, items, scores, 3, 3).tolist() == [[7, 5, 6], [-1, -1, -1], [9, -1, -1]]
    assert user_lists(users, items, scores, 3, 12)[0].tolist() == [7, 5, 6, 8] + [-1] * 8


def test_lists_are_in_the_order_of_any_finite_scores() -> None:
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(1 << 20)[:40] for _ in range(30)])
    items[:3] = np.arange(40)
    scores = (rng.normal(size=(30, 40)) * 10.0 ** rng.integers(-6, 6, (30, 40))).astype(np.float32)
    scores[:, 3], scores[1, 5] = 0.0, -np.inf
    users = rng.integers(0, 1 << 27, 30)  # more than fit one block of packed keys
    users[:3] = 7
    # Users are numbered anew: a table over 2**27 of them would be as large.
    known, users = np.unique(users, return_inverse=True)
    lists = user_lists(users, items, scores, len(known), 100)
    for user in range(len(known)):
        best: dict[int, float] = {}
        for row in np.flatnonzero(users == user):
            for item, score in zip(items[row].tolist(), scores[row].tolist(), strict=True):
                best[item] = max(best.get(item, -np.inf), score)
        expected = sorted((item for item in best if best[item] > -np.inf), key=lambda item: (-best[item], item))
        assert lists[user][lists[user] >= 0].tolist() == expected[:100]


def test_many_users_are_sorted_in_blocks() -> None:
    rng = np.random.default_rng(1)
    num_users, width = 40, 1 << 27
    pairs = UserItems(np.arange(num_users) << 32, num_users)
    scores = rng.normal(size=num_users).astype(np.float32)
    assert pairs.by_score(scores).tolist() == list(range(num_users)), "one item each"
    crowd = UserItems(np.concatenate([np.arange(5), (np.arange(num_users) << 32) + width])[5:], num_users)
    assert crowd.lists(crowd.by_score(scores), 2)[:, 0].tolist() == [width] * num_users


def test_items_are_found_and_added_by_user() -> None:
    pairs, (first, second) = UserItems.number(
        [np.array([0, 2]), np.array([2])], [np.array([[4, -1], [7, 4]]), np.array([[4, 9]])], 3
    )
    assert (pairs.owners.tolist(), pairs.items.tolist()) == ([0, 2, 2, 2], [4, 4, 7, 9])
    assert (first.tolist(), second.tolist()) == ([[0, 4], [2, 1]], [[1, 3]])
    assert pairs.rows().tolist() == [[4, -1, -1], [-1, -1, -1], [4, 7, 9]]
    assert pairs.find(np.array([[9, 4], [4, -1], [-1, 9]])).tolist() == [[4, 0], [4, 4], [4, 3]]
    more, added, (moved,) = pairs.with_items(np.array([[4, 1], [3, -1], [9, -1]]), [first])
    assert more.items.tolist() == [1, 4, 3, 4, 7, 9]
    assert added.tolist() == [[1, 0], [2, 6], [5, 6]]
    assert moved.tolist() == [[1, 6], [4, 3]]


def test_no_items_are_empty_lists() -> None:
    pairs, (numbers,) = UserItems.number([np.array([0])], [np.array([[-1, -1]])], 2)
    assert numbers.tolist() == [[0, 0]]
    assert pairs.find(np.array([[1], [-1]])).tolist() == [[0], [0]]
    assert pairs.lists(pairs.by_score(np.empty(0, np.float32)), 2).tolist() == [[-1, -1], [-1, -1]]
