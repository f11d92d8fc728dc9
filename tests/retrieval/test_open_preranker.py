"""The learned preranker behind the retriever's interface, and which preranker a recipe chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mtmh.modules import UserTower

from mtmh.config import RetrievalConfig
from mtmh.preranking.artifact import TaskSummary
from mtmh.preranking.scorer import Scorer
from mtmh.retrieval.open_preranker import LearnedPreranker, open_prerankers
from mtmh.retrieval.ranking import Candidates, HeadScorePreranker, HistoryPreranker, Requests, prerank

TASKS = [TaskSummary(name="click", label=None, weight=1.0), TaskSummary(name="like", label=0, weight=0.5)]


def scorer_of(num_items: int, dim: int = 8) -> Scorer:
    torch.manual_seed(0)
    vectors = np.random.default_rng(0).normal(size=(num_items, dim + 2)).astype(np.float32)
    vectors[:, :dim] /= np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)
    return Scorer(vectors, UserTower(dim, [16], 0.1, [-5.0, -1.0]), TASKS, history_length=20)


def test_all_candidates_of_a_request_are_one_product() -> None:
    scorer = scorer_of(100_000)
    items = np.random.default_rng(1).permutation(100_000)[None, :]
    histories = np.array([[5, 6, 7]])
    queries, biases = scorer.queries(histories, np.array([0]), np.array([5]))
    blocks = list(scorer.logits(queries, biases, items))
    assert [tuple(logits.shape) for _, logits in blocks] == [(1, 2, 100_000)]
    scores = LearnedPreranker(scorer).score(
        Requests(np.array([5]), np.array([0]), histories), Candidates("any", items, np.zeros(items.shape, np.float32))
    )
    assert scores.shape == (1, 100_000)
    wide = scorer.vectors[items[0]].astype(np.float64) @ queries[0].double().numpy().T + biases[0].double().numpy()
    chance = 1.0 / (1.0 + np.exp(-wide))
    np.testing.assert_allclose(scores[0], chance[:, 0] * (1.0 + 0.5 * chance[:, 1]), rtol=1e-3)


def test_it_keeps_the_best_of_each_trigger() -> None:
    learned = LearnedPreranker(scorer_of(50))
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
    learned = LearnedPreranker(scorer_of(50))
    candidates = Candidates("any", np.array([[51, 8, 1]]), np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="knows 50 items; it was asked about a newer one"):
        learned.score(Requests.anonymous(np.array([3])), candidates)


def test_a_recipe_chooses_its_preranker(tmp_path: Path) -> None:
    vectors = {"engagement": np.eye(4, dtype=np.float32), "relevance": np.eye(4, dtype=np.float32)}
    for kind, expected in (("head-score", HeadScorePreranker), ("history", HistoryPreranker)):
        settings = RetrievalConfig.model_validate({"preranker": kind})
        chosen = open_prerankers(settings, list(vectors), vectors, folder=tmp_path, temperature=0.1)
        assert [type(one) for one in chosen] == [expected, expected]
    settings = RetrievalConfig(sorter="history")
    chosen = open_prerankers(settings, list(vectors), vectors, folder=tmp_path, temperature=0.1)
    assert [type(one) for one in chosen] == [HeadScorePreranker, HistoryPreranker]
    settings = RetrievalConfig(preranker="history", sorter="head-score")
    chosen = open_prerankers(settings, list(vectors), vectors, folder=tmp_path, temperature=0.1)
    assert [type(one) for one in chosen] == [HistoryPreranker, HeadScorePreranker]
    learned = RetrievalConfig(preranker="learned")
    assert learned.needs_preranker
    assert RetrievalConfig(sorter="learned").needs_preranker
    with pytest.raises(ValueError, match="no preranker artifact here"):
        open_prerankers(learned, list(vectors), vectors, folder=tmp_path / "nowhere", temperature=0.1)
