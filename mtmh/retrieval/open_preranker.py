"""The preranker that a recipe chooses, learned or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from mtmh.config import RetrievalConfig
from mtmh.data.arrays import Scores, Vectors
from mtmh.data.item_vectors import ItemVectors
from mtmh.preranking.scorer import Scorer
from mtmh.retrieval.ranking import Candidates, HeadScorePreranker, HistoryPreranker, Preranker, Requests


class LearnedPreranker:
    """The user-to-item model of ``mtmh train-preranker``: a candidate's tasks, weighted and added up.

    The candidates of a trigger meet its user in one product, whatever their number.

    Args:
        scorer: the files of a preranker artifact.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        """As ``Preranker.score``; histories longer than the model's are cut to their first items.

        Raises:
            ValueError: an item is newer than the model, see `with_added`.
        """
        return self.scorer.score(requests.histories, requests.users, requests.triggers, candidates.items)

    def with_added(
        self, items: pa.Table, added: Mapping[str, Vectors], vectors: Mapping[str, ItemVectors]
    ) -> LearnedPreranker:
        """As ``Extensible.with_added``."""
        del vectors
        return LearnedPreranker(self.scorer.with_added(items, added))


def open_prerankers(
    settings: RetrievalConfig,
    heads: Sequence[str],
    vectors: Mapping[str, ItemVectors],
    *,
    folder: Path,
    temperature: float,
) -> tuple[Preranker, Preranker]:
    """Who keeps the best of each head, and who sorts the answers of all heads and triggers.

    Args:
        settings: ``preranker`` and ``sorter`` matter here.
        heads: names, the engagement head first.
        vectors: head -> [I, D] float32 unit-length embeddings.
        folder: of the preranker artifact, which only ``learned`` needs.
        temperature: of the engagement head's loss, which only ``history`` needs.

    Raises:
        ValueError: the learned preranker is asked for and not there, or knows other items.
    """
    engagement = heads[0]
    asked, rankers = {settings.preranker, settings.sorted_by}, dict[str, Preranker]()
    if "learned" in asked:
        rankers["learned"] = LearnedPreranker(Scorer.load(folder, len(vectors[engagement])))
    if "history" in asked:
        rankers["history"] = HistoryPreranker(engagement, vectors[engagement], temperature)
    return (
        rankers.get(settings.preranker, HeadScorePreranker()),
        rankers.get(settings.sorted_by, HeadScorePreranker((engagement, vectors[engagement]))),
    )
