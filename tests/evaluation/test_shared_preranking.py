"""One ranking of all heads' candidates, beside a plain ranking of the whole catalogue."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mtmh.data.arrays import Scores
from mtmh.evaluation.shared_preranking import shared_merge, shared_prerank
from mtmh.retrieval.ranking import Candidates, Requests

NUM_ITEMS, DIM = 80, 8
HEADS = ["engagement", "relevance"]
TRIGGERS = np.array([3, 50, 17])
K, K_ANN = 6, 12


def unit(seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = {head: unit(place) for place, head in enumerate(HEADS)}


class BothHeads:
    """Sorts by the sum of the similarities under both heads, so that either may bring the best."""

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        scores = np.zeros(candidates.items.shape, np.float32)
        for vectors in VECTORS.values():
            scores += np.einsum("tcd,td->tc", vectors[candidates.items], vectors[requests.triggers])
        return np.where(candidates.items >= 0, scores, np.float32(-np.inf))


def found(head: str) -> Candidates:
    similarity = VECTORS[head][TRIGGERS] @ VECTORS[head].T
    similarity[np.arange(len(TRIGGERS)), TRIGGERS] = -np.inf
    items = np.argsort(-similarity, axis=1, kind="stable")[:, :K_ANN]
    return Candidates(head, items, np.take_along_axis(similarity, items, axis=1))


def best(trigger: int, gone: list[int]) -> set[int]:
    """The K best by summed similarity of the allowed ones that the heads find for a trigger."""
    summed = sum(VECTORS[head].astype(np.float64) @ VECTORS[head][trigger] for head in HEADS)
    assert isinstance(summed, np.ndarray)
    candidates: set[int] = set()
    for head in HEADS:
        ranked = np.argsort(-(VECTORS[head] @ VECTORS[head][trigger]), kind="stable").tolist()
        candidates |= {item for item in [item for item in ranked if item != trigger][:K_ANN] if item not in gone}
    return set(sorted(candidates, key=lambda item: -summed[item])[:K])


def test_the_best_of_all_heads_are_kept_with_the_similarity_under_the_head_that_brought_them() -> None:
    candidates = [found(head) for head in HEADS]
    gone = candidates[0].items[0, :2].tolist()
    for banned in (None, [np.isin(part.items, gone) for part in candidates]):
        kept = shared_prerank(BothHeads(), Requests.anonymous(TRIGGERS), candidates, K, banned)
        assert [part.head for part in kept] == HEADS
        for row, trigger in enumerate(TRIGGERS.tolist()):
            by_head = [[item for item in part.items[row].tolist() if item >= 0] for part in kept]
            assert all(by_head), "each head brings some"
            assert sum(map(len, by_head)) == K
            assert set().union(*by_head) == best(trigger, gone if banned else [])
            for part, items in zip(kept, by_head, strict=True):
                expected = VECTORS[part.head][items] @ VECTORS[part.head][trigger]
                np.testing.assert_allclose(part.scores[row][: len(items)], expected, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 9))
def test_shared_merge_is_one_sort_of_all_candidates(seed: int, num_heads: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    candidates = [np.stack([rng.permutation(12)[: 3 + head] for _ in range(4)]) for head in range(num_heads)]
    for lists in candidates:
        lists[rng.random(lists.shape) < 0.2] = -1
    scores = [rng.integers(0, 5, lists.shape).astype(np.float32) for lists in candidates]
    for scored in scores:
        scored[rng.random(scored.shape) < 0.1] = -np.inf
    merged = shared_merge(candidates, scores, k)
    for row in range(4):
        ranked = sorted(
            (-scores[head][row, rank], head, rank, int(candidates[head][row, rank]))
            for head in range(num_heads)
            for rank in range(candidates[head].shape[1])
            if candidates[head][row, rank] >= 0 and np.isfinite(scores[head][row, rank])
        )
        best: dict[int, tuple[int, int]] = {}
        for _, head, rank, item in ranked:
            best.setdefault(item, (head, rank))
        expected = [(item, *where) for item, where in best.items()][:k]
        expected += [(-1, -1, -1)] * (k - len(expected))
        found = zip(merged.items[row].tolist(), merged.heads[row].tolist(), merged.ranks[row].tolist(), strict=True)
        assert list(found) == expected
