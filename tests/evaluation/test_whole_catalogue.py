"""Judging all items of a catalogue at once gives what judging some of them gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mtmh.modules import UserTower
from mtmh.modules.combination import Combination

from mtmh.data.arrays import Floats, Indices
from mtmh.data.item_vectors import StackedVectors
from mtmh.evaluation import whole_catalogue
from mtmh.evaluation.remembered import remembering
from mtmh.evaluation.whole_catalogue import WholeCatalogue, _SparseTable
from mtmh.preranking.artifact import TaskSummary
from mtmh.preranking.evidence import Evidence, history_weights
from mtmh.preranking.forward import CombinedEvidence, UserQueries
from mtmh.preranking.neighbours import Neighbours
from mtmh.preranking.scorer import Scorer
from mtmh.preranking.user_ranker import UserRanker
from mtmh.retrieval.open_preranker import LearnedPreranker

NUM_ITEMS, NUM_OLD, DIM = 60, 55, 6  # the last items are newer than the tables
TASKS = [TaskSummary(name="click", label=None, weight=1.0), TaskSummary(name="like", label=0, weight=0.5)]


def unit(rng: np.random.Generator) -> StackedVectors:
    vectors = rng.normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
    return StackedVectors(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def table(rng: np.random.Generator, *, negative: bool) -> Neighbours:
    items = np.stack([rng.permutation(NUM_OLD)[:7] for _ in range(NUM_OLD)]).astype(np.int32)
    items[rng.random(items.shape) < 0.2] = -1
    weights = rng.random(items.shape) - 0.5 * negative
    weights[3] = 0.0
    return Neighbours(items, weights.astype(np.float16))


@pytest.fixture(name="ranker")
def fixture_ranker() -> UserRanker:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    popularity = np.zeros((NUM_ITEMS, 2), np.float32)
    popularity[:20] = rng.random((20, 2))
    heads = {"engagement": unit(rng), "relevance": unit(rng)}
    tables = table(rng, negative=False), table(rng, negative=True)
    evidence = Evidence(heads, *tables, StackedVectors(popularity), history_length=4)
    combination = Combination(len(evidence.names), 5)
    with torch.no_grad():
        for parameter in combination.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    tower = UserQueries.of(UserTower(DIM, [16], 0.1, [-5.0, -1.0]))
    vectors = np.concatenate([unit(rng)[:], rng.normal(size=(NUM_ITEMS, 2)).astype(np.float32)], axis=1)
    return UserRanker(Scorer(vectors, tower, TASKS, history_length=4), evidence, CombinedEvidence.of(combination))


@pytest.fixture(name="histories")
def fixture_histories() -> Indices:
    rng = np.random.default_rng(1)
    histories = np.stack([rng.permutation(NUM_ITEMS)[:8] for _ in range(9)])
    histories[np.arange(8) >= np.array([8, 1, 2, 3, 4, 5, 6, 7, 8])[:, None]] = -1
    return histories


@pytest.mark.parametrize("most", [1 << 20, 5 * NUM_ITEMS])
def test_scores_are_those_of_the_ranker(
    ranker: UserRanker, histories: Indices, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_catalogue, "_MOST_SCORES", most)
    monkeypatch.setattr(whole_catalogue, "_BLOCK_SCORES", 2 * NUM_ITEMS)
    whole, rng = WholeCatalogue(ranker), np.random.default_rng(2)
    for width in (1, 10, 25):
        rows = rng.permutation(len(histories))[:5]
        candidates = rng.integers(-1, NUM_ITEMS, (5, width))
        padded = np.pad(histories[rows], ((0, 0), (0, width)), constant_values=-1)
        expected = ranker.score(histories[rows], candidates)
        np.testing.assert_allclose(whole.score(padded, candidates), expected, rtol=1e-5)


@pytest.mark.parametrize("proposed", [2, 1024])
def test_candidates_are_those_of_the_ranker(
    ranker: UserRanker, histories: Indices, proposed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_catalogue, "_PROPOSED", proposed)
    whole, rng = WholeCatalogue(ranker), np.random.default_rng(3)
    allowed = rng.random((len(histories), NUM_ITEMS + 1)) < 0.7
    users = np.arange(len(histories))[:, None]
    for k, more in ((1, 0), (5, 3), (30, 8)):
        found = rng.integers(-1, NUM_ITEMS, (len(histories), 4))
        pools = [
            judge.judged(histories, found, k, lambda items: allowed[users, items], more) for judge in (ranker, whole)
        ]
        for (items, scores), (all_items, all_scores) in zip(*(zip(*pool, strict=True) for pool in pools), strict=True):
            assert all_items[all_items >= 0].tolist() == items[items >= 0].tolist()
            np.testing.assert_allclose(all_scores[all_items >= 0], scores[items >= 0], rtol=1e-5)
            assert np.isneginf(all_scores[all_items < 0]).all()


def test_who_was_judged_is_not_judged_again_and_no_more_are_remembered_than_fit(
    ranker: UserRanker, histories: Indices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_catalogue, "_MOST_SCORES", 5 * NUM_ITEMS)
    whole, candidates = WholeCatalogue(ranker), np.zeros((len(histories), 1), np.int64)
    judged: list[int] = []

    def judge(users: Indices) -> tuple[Floats, list[Indices]]:
        judged.append(len(users))
        return WholeCatalogue._judge(whole, users)

    monkeypatch.setattr(whole, "_judge", judge)
    for asked, numbers in ((slice(0, 3), [3]), (slice(3, 5), [2]), (slice(0, 5), []), (slice(2, 9), [5, 2])):
        judged.clear()
        whole.score(histories[asked], candidates[asked])
        assert judged == numbers
        assert len(whole._scores) <= 5


def test_a_neighbour_of_an_item_far_back_is_one() -> None:
    """0.9 to the power of 1,000 is no float32."""
    num_items = 1001
    items = np.full((num_items, 1), -1, np.int32)
    items[999, 0] = 1000
    table = Neighbours(items, np.ones((num_items, 1), np.float16))
    histories = np.arange(1000)[None]
    weights = history_weights(histories)
    assert weights[1][0, 999] == 0.0
    summed = _SparseTable(table).sums(histories, weights, num_items)
    assert (
        summed.nearest(0, 2).tolist() == table.sums(histories, np.stack(weights)).nearest(0, 2).tolist() == [[1000, -1]]
    )


def test_a_small_catalogue_is_judged_as_a_whole(ranker: UserRanker) -> None:
    remembers = remembering(LearnedPreranker(ranker))
    assert isinstance(remembers, LearnedPreranker)
    assert isinstance(remembers.ranker, WholeCatalogue)
