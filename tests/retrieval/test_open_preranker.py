"""The learned preranker behind the retriever's interface, and which preranker a recipe chooses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from ivf_in_memory import build_ivf
from mtmh.modules import UserTower

from mtmh.config import RetrievalConfig
from mtmh.data.item_vectors import StackedVectors
from mtmh.index.item_store import StoredItems
from mtmh.preranking.artifact import TaskSummary
from mtmh.preranking.evidence import Evidence
from mtmh.preranking.forward import CombinedEvidence, UserQueries
from mtmh.preranking.neighbours import Neighbours
from mtmh.preranking.scorer import Scorer
from mtmh.preranking.stacking import logits_alone
from mtmh.preranking.user_ranker import UserRanker, narrowest
from mtmh.retrieval.catalogue import Catalogue
from mtmh.retrieval.filters import Filters
from mtmh.retrieval.open_preranker import LearnedPreranker, open_prerankers
from mtmh.retrieval.query import Query
from mtmh.retrieval.ranking import Candidates, HeadScorePreranker, HistoryPreranker, Requests, prerank
from mtmh.retrieval.retriever import Retriever

TASKS = [TaskSummary(name="click", label=None, weight=1.0), TaskSummary(name="like", label=0, weight=0.5)]


def scorer_of(num_items: int, dim: int = 8) -> Scorer:
    torch.manual_seed(0)
    vectors = np.random.default_rng(0).normal(size=(num_items, dim + 2)).astype(np.float32)
    vectors[:, :dim] /= np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)
    return Scorer(vectors, UserQueries.of(UserTower(dim, [16], 0.1, [-5.0, -1.0])), TASKS, history_length=20)


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
    return UserRanker(scorer_of(num_items), evidence, CombinedEvidence.of(combination))


def test_rows_of_candidates_are_no_wider_than_the_fullest() -> None:
    items = np.array([[-1, 3, -1, 5, 9], [2, -1, -1, -1, 4]])
    assert narrowest(items).tolist() == [[3, 5, 9], [-1, 2, 4]]
    assert narrowest(items[1:]).tolist() == [[2, 4]]
    assert narrowest(items[:0]).shape == (0, 0)


def test_all_candidates_of_a_request_are_one_product() -> None:
    scorer = scorer_of(100_000)
    items = np.random.default_rng(1).permutation(100_000)[None, :]
    histories = np.array([[5, 6, 7]])
    queries, biases = scorer.queries(histories, np.array([0]), np.array([5]))
    blocks = list(scorer.logits(queries, biases, items))
    assert [tuple(logits.shape) for _, logits in blocks] == [(1, 2, 100_000)]
    wide = scorer.vectors[items[0]].astype(np.float64) @ queries[0].astype(np.float64).T + biases[0].astype(np.float64)
    np.testing.assert_allclose(blocks[0][1][0].T, wide, rtol=1e-3, atol=1e-4)


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
            logits = ranker.scorer.vectors[np.array([item])][0] @ queries[0].T + biases[0]
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


def learned_retriever() -> Retriever:
    """Of 40 items, whose sorter is the learned model with a table of what goes with items 5, 6 and 7."""
    ranker = ranker_of(40)
    items = np.full((40, 3), -1, np.int32)
    weights = np.zeros((40, 3), np.float16)
    for item in (5, 6, 7):
        items[item], weights[item] = (item + 10, 9, item + 20), (0.5, 0.25, 0.125)
    cosines = Neighbours(items, weights)
    popularity = StackedVectors(np.ones((40, 2), np.float32))
    linear = Neighbours(items, np.zeros((40, 3), np.float16))
    evidence = Evidence(ranker.evidence.vectors, cosines, linear, popularity, 20)
    vectors = ranker.evidence.vectors["engagement"][:]
    table = pa.table(
        {
            "item_id": np.arange(40),
            "text": [f"item {item}" for item in range(40)],
            "topic_l1": [f"t{item % 4}" for item in range(40)],
            "topic_l2": pa.nulls(40, pa.string()),
            "train_count": np.ones(40, np.int64),
        }
    )
    return Retriever(
        {"engagement": build_ivf(vectors, num_clusters=2)},
        {"engagement": vectors},
        Catalogue(StoredItems.of(table)),
        RetrievalConfig(k=6, k_ann=40, num_probes=2),
        preranker=HeadScorePreranker(),
        sorter=LearnedPreranker(UserRanker(ranker.scorer, evidence, ranker.combination)),
    )


def test_what_is_engaged_with_together_stands_beside_the_heads() -> None:
    retriever = learned_retriever()
    together = retriever.retrieve_side_by_side(Query([6], k=6)).together
    assert together is not None
    assert [(found.item, found.score, found.head) for found in together] == [
        (16, 0.5, "together"),
        (9, 0.25, "together"),
        (26, 0.125, "together"),
    ]
    filtered = retriever.retrieve_side_by_side(Query([6], k=1, filters=Filters(exclude=[16])))
    assert [found.item for found in filtered.together or []] == [9]
    assert 9 in filtered.descriptions
    assert retriever.retrieve_side_by_side(Query([8])).together == []
    assert isinstance(retriever.sorter, LearnedPreranker)
    items, cosines = retriever.sorter.engaged_with(40)  # newer than the table
    assert len(items) == len(cosines) == 0


def test_caps_boosts_and_turned_down_items_hold_for_a_list_of_the_user_source() -> None:
    retriever = learned_retriever()
    history = [5, 6, 7]
    plain = retriever.retrieve_user(Query(history=history, k=9))
    assert len(plain) == 9
    capped = retriever.retrieve_user(Query(history=history, k=9, max_per={"topic_l1": 3, "trigger": 3}))
    assert len(capped) == 9
    for counts in (
        Counter(int(found.item) % 4 for found in capped),
        Counter(found.trigger for found in capped),
    ):
        assert max(counts.values()) <= 3
    assert capped[0].item == plain[0].item
    scores = [found.score for found in capped]
    assert scores == sorted(scores, reverse=True)
    last = plain[-1].item
    boosted = retriever.retrieve_user(Query(history=history, k=9, boosts={"item_id": {last: 1000.0}}))
    assert boosted[0].item == last
    assert boosted[0].score == pytest.approx(1000.0 * plain[-1].score, rel=1e-4)
    turned_down = plain[0].item
    away = retriever.retrieve_user(Query(history=history, k=9, away_from=[turned_down]))
    assert turned_down not in [found.item for found in away]
    vectors = retriever.vectors["engagement"]
    before = {found.item: found.score for found in plain}
    for found in away:
        if found.item in before:
            nearness = max(0.0, float(vectors[np.array([turned_down])][0] @ vectors[np.array([found.item])][0]))
            assert found.score == pytest.approx(before[found.item] * (1.0 - nearness), rel=1e-3, abs=1e-6)
