"""The retriever with one ranking of all heads' candidates, beside a plain ranking of the whole catalogue."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from test_retriever import HEADS, NUM_ITEMS, id_of, write_index

from mtmh.config import RetrievalConfig
from mtmh.retrieval.answers import RetrievedItem
from mtmh.retrieval.ranking import Candidates, Requests, Scores
from mtmh.retrieval.retriever import Retriever

TRIGGERS = [3, 50, 17]
K, K_ANN = 6, 12


class BothHeads:
    """Sorts by the sum of the similarities under both heads, so that either may bring the best."""

    def __init__(self, retriever: Retriever) -> None:
        self._vectors = retriever.vectors

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        scores = np.zeros(candidates.items.shape, np.float32)
        for vectors in self._vectors.values():
            scores += np.einsum("tcd,td->tc", vectors[candidates.items], vectors[requests.triggers])
        return np.where(candidates.items >= 0, scores, np.float32(-np.inf))


@pytest.fixture(scope="module")
def per_head(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    folder = tmp_path_factory.mktemp("shared") / "index"
    return Retriever.load(write_index(folder, ids=pa.array(np.arange(NUM_ITEMS) * 100 + 7)))


@pytest.fixture(scope="module")
def shared(per_head: Retriever) -> Retriever:
    settings = per_head.defaults.model_dump() | {"preranking": "shared", "k": K, "k_ann": K_ANN}
    indexes = {head: per_head._searches.by_head[head].index for head in HEADS}
    return Retriever(
        indexes,
        per_head.vectors,
        per_head.catalogue,
        RetrievalConfig(**settings),
        preranker=per_head.preranker,
        sorter=BothHeads(per_head),
    )


def naive(retriever: Retriever, triggers: list[int], k: int, gone: list[int]) -> dict[int, tuple[float, int]]:
    """The k best by summed similarity, of the K best that the heads find for each trigger: item -> score, trigger."""
    vectors = {head: retriever.vectors[head][:].astype(np.float64) for head in HEADS}
    best: dict[int, tuple[float, int]] = {}
    for trigger in triggers:
        summed = sum(vectors[head] @ vectors[head][trigger] for head in HEADS)
        assert isinstance(summed, np.ndarray)
        found: set[int] = set()
        for head in HEADS:
            ranked = np.argsort(-(vectors[head] @ vectors[head][trigger]), kind="stable").tolist()
            found |= set([item for item in ranked if item != trigger and item not in gone][:K_ANN])
        for item in sorted(found, key=lambda item: -summed[item])[:K]:
            best[item] = max(best.get(item, (-2.0, -1)), (float(summed[item]), trigger))
    kept = sorted(best, key=lambda item: -best[item][0])[:k]
    return {item: best[item] for item in kept}


def check(found: list[RetrievedItem], expected: dict[int, tuple[float, int]]) -> None:
    assert {answer.item for answer in found} == {id_of(item) for item in expected}
    for answer in found:
        assert isinstance(answer.item, int)
        score, trigger = expected[(answer.item - 7) // 100]
        assert answer.score == pytest.approx(score, abs=1e-5)
        assert answer.trigger == id_of(trigger)


@pytest.mark.parametrize("alpha", [0, 50, 100])
def test_the_best_of_all_heads_are_the_answer_at_any_alpha(shared: Retriever, alpha: float) -> None:
    answers = shared.retrieve([id_of(trigger) for trigger in TRIGGERS], alpha=alpha)
    heads = {answer.head for found in answers for answer in found}
    assert heads == set(HEADS), "a head without a share is in the ranking too"
    for trigger, found in zip(TRIGGERS, answers, strict=True):
        assert len(found) == K
        check(found, naive(shared, [trigger], K, []))


@pytest.mark.parametrize("alpha", [0, 50, 100])
def test_a_users_list_is_the_best_of_all_triggers_and_heads(shared: Retriever, alpha: float) -> None:
    found = shared.retrieve_user([id_of(trigger) for trigger in TRIGGERS], alpha=alpha, k=9)
    check(found, naive(shared, TRIGGERS, 9, TRIGGERS))
    scores = [answer.score for answer in found]
    assert scores == sorted(scores, reverse=True)


def test_side_by_side_shows_each_head_alone_beside_the_shared_answer(shared: Retriever, per_head: Retriever) -> None:
    shown = shared.retrieve_side_by_side(id_of(3))
    alone = per_head.retrieve_side_by_side(id_of(3), k=K, k_ann=K_ANN)
    for head in HEADS:
        assert [answer.item for answer in shown.heads[head]] == [answer.item for answer in alone.heads[head]]
    assert shown.merged == shared.retrieve([id_of(3)])[0] != alone.merged
