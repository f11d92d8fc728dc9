"""The preranker that a recipe chooses, learned or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtmh.config import RetrievalConfig
from mtmh.index.item_vectors import ItemVectors
from mtmh.preranking.scorer import Indices, Scorer
from mtmh.serving.preranker import Candidates, HeadScorePreranker, HistoryPreranker, Preranker, Requests, Scores


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
            ValueError: an item is newer than the model, see `extended`.
        """
        return self.scorer.score(requests.histories, requests.users, requests.triggers, candidates.items)

    def extended(self, stand_ins: Indices) -> LearnedPreranker:
        """One that also knows ``N`` newer items at the end of the catalogue.

        Args:
            stand_ins: [N] items that the model knows; a newer item scores as its stand-in does.
        """
        return LearnedPreranker(self.scorer.extended(stand_ins))


def open_prerankers(
    settings: RetrievalConfig,
    heads: Sequence[str],
    vectors: Mapping[str, ItemVectors],
    *,
    folder: Path,
    temperature: float,
    dataset_digest: str | None = None,
) -> tuple[Preranker, Preranker]:
    """Who keeps the best of each head, and who sorts the answers of all heads and triggers.

    Args:
        settings: ``preranker`` matters here.
        heads: names, the engagement head first.
        vectors: head -> [I, D] float32 unit-length embeddings.
        folder: of the preranker artifact, which only ``learned`` needs.
        temperature: of the engagement head's loss, which only ``history`` needs.
        dataset_digest: of the dataset whose items the index holds; ``None``: not checked.

    Raises:
        ValueError: the learned preranker is asked for and not there, or knows other items.
    """
    engagement = heads[0]
    if settings.preranker == "learned":
        learned = LearnedPreranker(Scorer.load(folder, dataset_digest))
        return learned, learned
    if settings.preranker == "history":
        history = HistoryPreranker(vectors[engagement], temperature)
        return history, history
    return HeadScorePreranker(), HeadScorePreranker((engagement, vectors[engagement]))
