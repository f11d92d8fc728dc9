"""The learned preranker behind the retriever's interface, and which preranker a recipe chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mtmh.modules import UserTower

from mtmh.config import RetrievalConfig
from mtmh.data.item_vectors import StackedVectors
from mtmh.preranking.artifact import TaskSummary
from mtmh.preranking.evidence import Evidence
from mtmh.preranking.neighbours import Neighbours
from mtmh.preranking.scorer import Scorer
from mtmh.preranking.stacking import logits_alone
from mtmh.preranking.user_ranker import UserRanker
from mtmh.retrieval.open_preranker import LearnedPreranker, open_prerankers
from mtmh.retrieval.ranking import Candidates, HeadScorePreranker, HistoryPreranker, Requests, prerank

TASKS = [TaskSummary(name="click", label=None, weight=1.0), TaskSummary(name="like", label=0, weight=0.5)]


def scorer_of(num_items: int, dim: int = 8) -> Scorer:
    torch.manual_seed(0)
    vectors = np.random.default_rng(0).normal(size=(num_items, dim + 2)).astype(np.float32)
    vectors[:, :dim] /= np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)
    return Scorer(vectors, UserTower(dim, [16], 0.1, [-5.0, -1.0]), TASKS, history_length=20)


def ranker_of(num_items: int) -> UserRanker:
    """One that goes by the model and, half as much, by the largest similarity under the engagement head."""
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(num_items, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    neighbours = Neighbours(np.full((num_items, 3), -1, np.int32), np.zeros((num_items, 3), np.float16))
    popularity = StackedVectors(np.zeros((num_items, 2), np.float32))
    evidence = Evidence({"engagement": StackedVectors(vectors)}, neighbours, neighbours, popularity, 20)
    combination = logits_alone(len(evidence.names))
    with torch.no_grad():
        combination.linear.weight[0, evidence.names.index("engagement largest")] = 50.0  # its scale is 0.01
    return UserRanker(scorer_of(num_items), evidence, combination)


def test_all_candidates_of_a_request_are_one_product() -> None:
    scorer = scorer_of(100_000)
    items = np.random.default_rng(1).permutation(100_000)[None, :]
    histories = np.array([[5, 6, 7]])
    queries, biases = scorer.queries(histories, np.array([0]), np.array([5]))
    blocks = list(scorer.logits(queries, biases, items))
    assert [tuple(logits.shape) for _, logits in blocks] == [(1, 2, 100_000)]
    wide = scorer.vectors[items[0]].astype(np.float64) @ queries[0].double().numpy().T + biases[0].double().numpy()
    np.testing.assert_allclose(blocks[0][1][0].numpy().T, wide, rtol=1e-3, atol=1e-4)


def test_a_candidate_is_scored_by_all_evidence_whatever_brought_it() -> None:
    ranker = ranker_of(40)
    histories = np.array([[5, 6, 7], [9, -1, -1]])
    requests = Requests(np.array([5, 9, 6]), np.array([0, 1, 0]), histories)
    items = np.array([[1, 2, -1], [1, 2, 3], [8, 2, 1]])
    scores = LearnedPreranker(ranker).score(requests, Candidates("any", items, np.zeros(items.shape, np.float32)))
    vectors = ranker.evidence.vectors["engagement"][:]
    for row, user in enumerate(requests.users.tolist()):
        history = histories[user][histories[user] >= 0]
        queries, biases = ranker.scorer.queries(histories[user : user + 1], np.array([0]), history[:1])
        for column, item in enumerate(items[row].tolist()):
            logits = ranker.scorer.vectors[np.array([item])][0] @ queries[0].numpy().T + biases[0].numpy()
            logit = logits[0] + 0.5 * (vectors[history] @ vectors[item]).max()
            chances = 1.0 / (1.0 + np.exp(-np.array([logit, logits[1]])))
            expected = chances[0] * (1.0 + 0.5 * chances[1]) if item >= 0 else -np.inf
            assert scores[row, column] == pytest.approx(expected, rel=1e-3)


def test_it_keeps_the_best_of_each_trigger() -> None:
    learned = LearnedPreranker(ranker_of(50))
    requests = Requests(np.array([5, 6, 9]), np.array([0, 1, 0]), np.array([[1, 2, 3], [4, -1, -1]]))
    items = np.stack([np.random.default_rng(row).permutation(50)[:30] for row in range(3)])
    items[:, 7] = -1
    candidates = Candidates("engagement", items, np.zeros((3, 30), np.float32))
    scores = learned.score(requests, candidates)
    assert np.isneginf(scores[:, 7]).all()
    kept = prerank(learned, requests, candidates, 5)
    for row in range(3):
        assert kept.items[row].tolist() == items[row][np.argsort(-scores[row])[:5]].tolist()


def test_it_says_so_when_asked_about_an_item_that_it_does_not_know() -> None:
    learned = LearnedPreranker(ranker_of(50))
    candidates = Candidates("any", np.array([[51, 8, 1]]), np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="knows 50 items; it was asked about a newer one"):
        learned.score(Requests.anonymous(np.array([3])), candidates)


def test_a_recipe_chooses_its_preranker(tmp_path: Path) -> None:
    vectors = {"engagement": np.eye(4, dtype=np.float32), "relevance": np.eye(4, dtype=np.float32)}
    for kind, expected in (("head-score", HeadScorePreranker), ("history", HistoryPreranker)):
        chosen = open_prerankers(kind, kind, list(vectors), vectors, tmp_path, temperature=0.1)
        assert [type(ranker) for ranker in chosen] == [expected, expected]
    chosen = open_prerankers("head-score", "history", list(vectors), vectors, tmp_path, temperature=0.1)
    assert [type(ranker) for ranker in chosen] == [HeadScorePreranker, HistoryPreranker]
    chosen = open_prerankers("history", "head-score", list(vectors), vectors, tmp_path, temperature=0.1)
    assert [type(ranker) for ranker in chosen] == [HistoryPreranker, HeadScorePreranker]
    learned = RetrievalConfig(preranker="learned")
    assert learned.needs_preranker
    assert RetrievalConfig().needs_preranker, "to sort by"
    assert not RetrievalConfig(sorter=None).needs_preranker
    with pytest.raises(ValueError, match="no preranker artifact here"):
        open_prerankers("learned", learned.sorted_by, list(vectors), vectors, tmp_path / "nowhere", temperature=0.1)


def test_it_proposes_the_best_of_what_was_found_what_goes_with_the_history_and_what_is_popular() -> None:
    ranker = ranker_of(40)
    popularity = np.zeros((40, 2), np.float32)
    popularity[33, 0] = popularity[34, 1] = 5.0
    items = np.full((40, 3), -1, np.int32)
    items[6, 0], items[7, :2] = 20, (21, 22)
    cosines, linear = (Neighbours(items, np.full((40, 3), value, np.float16)) for value in (0.5, 0.0))
    evidence = Evidence(ranker.evidence.vectors, cosines, linear, StackedVectors(popularity), 20)
    source = LearnedPreranker(UserRanker(ranker.scorer, evidence, ranker.combination))
    requests = Requests(np.array([5, 6, 7]), np.zeros(3, int), np.array([[5, 6, 7]]))
    found = [Candidates("engagement", np.array([[1, 2], [2, -1], [3, 5]]), np.zeros((3, 2), np.float32))]
    allowed = np.ones(40, bool)
    allowed[[5, 6, 7, 22]] = False
    best, known = source.propose(requests, found, 6, allowed)
    assert best.head == "user"
    placed = best.items >= 0
    assert (placed.sum(axis=0) == 1).all(), "each at one trigger"
    assert np.isfinite(best.scores[placed]).all()
    pool = np.array([1, 2, 3, 20, 21, 33, 34])
    scores = source.ranker.score(requests.histories, pool[None, :])[0]
    assert best.items.max(axis=0).tolist() == pool[np.argsort(-scores)][:6].tolist()
    for candidates in (best, found[0]):
        allowed_items = Candidates("any", np.where(allowed[candidates.items], candidates.items, -1), candidates.scores)
        np.testing.assert_allclose(
            known.score(requests, allowed_items), source.score(requests, allowed_items), rtol=1e-5
        )
    best_items, ranked = source.best_of_users(
        requests.histories, np.array([[1, 2, 3, 5]]), 6, lambda items: allowed[items]
    )
    assert best_items[0].tolist() == best.items.max(axis=0).tolist()
    np.testing.assert_allclose(ranked[0], np.sort(scores)[::-1][:6], rtol=1e-5)
