"""The model of an evaluation: a retriever in terms of the rows of a dataset, whatever rows its index keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtmh.config import RetrievalConfig
from mtmh.data.arrays import Indices, Scores, row_type
from mtmh.data.dataset import Dataset
from mtmh.evaluation.pipeline import Pipeline, Search
from mtmh.evaluation.remembered import remembering
from mtmh.retrieval.catalogue import Catalogue
from mtmh.retrieval.ranking import Candidates, HeadScorePreranker, Ranker, Requests, UserListSource
from mtmh.retrieval.retriever import Retriever

CandidateSearch = Callable[[str, Indices, int], Candidates]  # head, [T] triggers, k_ann -> [T, k_ann]


class Subject:
    """A retriever that is asked by rows of a dataset and answers with such.

    Args:
        retriever: to evaluate.
        rows: where the items of the dataset are in its index; None: at the same rows.
        rankers: preranker and sorter, where they are not the retriever's own.
        search: finds candidates in the retriever's place, where rows are the dataset's.

    Attributes:
        heads: names, the engagement head first.
        preranker: ranks each head's candidates.
        sorter: scores the answers of all heads.
        by_similarity: the sorter that goes by the engagement head.
    """

    def __init__(
        self,
        retriever: Retriever,
        rows: ItemRows | None = None,
        rankers: tuple[Ranker, Ranker] | None = None,
        search: CandidateSearch | None = None,
    ) -> None:
        self._search = search
        self._retriever = retriever
        self._rows = rows
        self._rankers = rankers or (remembering(retriever.preranker), remembering(retriever.sorter))
        self.heads = retriever.heads
        self.preranker = self._translated(self._rankers[0])
        self.sorter = self._translated(self._rankers[1])
        engagement = retriever.heads[0]
        self.by_similarity = self._translated(HeadScorePreranker((engagement, retriever.vectors[engagement])))

    @property
    def ranked_by(self) -> tuple[str, str]:
        """The kinds of preranker and sorter, as the settings name them."""
        return self._retriever.defaults.preranker, self._retriever.defaults.sorted_by

    def exact(self) -> Subject:
        """The same over exact search."""
        return Subject(self._retriever.exact(), self._rows, self._rankers)

    def search(self, head: str, triggers: Indices, k_ann: int, num_probes: int, needed: int = 1) -> Candidates:
        """As ``Retriever.search``; a trigger that the index does not hold finds nothing.

        Items that the dataset does not have are no candidates, so gaps (-1) may be anywhere in a row. They are not kept
        out of the search: few allowed items would be compared one by one, which shows nothing of the index's loss.
        """
        if self._search is not None:
            return self._search(head, triggers, k_ann)
        if self._rows is None:
            return self._retriever.search(head, triggers, k_ann, num_probes, needed=needed)
        rows = self._rows.row_of[triggers]
        known = rows >= 0
        found = self._retriever.search(head, rows[known], k_ann, num_probes, needed=needed)
        found_items = self._rows.item_of[found.items]
        items = np.full((len(triggers), k_ann), -1, found_items.dtype)
        scores = np.full((len(triggers), k_ann), -np.inf, np.float32)
        items[known] = found_items
        scores[known] = np.where(found_items >= 0, found.scores, np.float32(-np.inf))
        return Candidates(head, items, scores)

    def pipeline(self, settings: RetrievalConfig, num_items: int) -> Pipeline:
        """The retriever's way of answering by these settings; ``num_items`` are in the dataset."""
        num_probes = self._retriever.num_probes

        def search(head: str) -> Search:
            if self._rows is not None:  # which leaves gaps
                return lambda triggers, _, needed: self.search(head, triggers, settings.k_ann, num_probes, needed)
            return lambda triggers, k, needed: self.search(head, triggers, k, num_probes, needed)

        return Pipeline(
            {head: search(head) for head in self.heads},
            self.preranker,
            self.sorter,
            num_items=num_items,
            k_ann=settings.k_ann,
            k=settings.k,
            alpha=settings.alpha if len(self.heads) > 1 else 100.0,
            user_share=settings.user_share,
        )

    def _translated(self, ranker: Ranker) -> Ranker:
        if self._rows is None:
            return ranker
        if isinstance(ranker, UserListSource):
            return _TranslatedSource(ranker, self._rows)
        return _Translated(ranker, self._rows)


@dataclass(frozen=True)
class ItemRows:
    """Items of a dataset and rows of an index.

    Attributes:
        row_of: [I + 1] row of an item, -1: not in the index; the last entry is for item -1.
        item_of: [rows + 1] item of a row, -1: not in the dataset, or removed and so no answer; the last entry is for
            row -1.
    """

    row_of: npt.NDArray[np.int64]
    item_of: Indices

    @staticmethod
    def match(dataset: Dataset, catalogue: Catalogue) -> ItemRows:
        """Matches by id."""
        rows = catalogue.find(dataset.item_ids.tolist(), "item")
        items = np.full(len(catalogue) + 1, -1, row_type(dataset.num_items))
        items[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        if catalogue.answerable is not None:
            items[:-1][~catalogue.answerable] = -1
        return ItemRows(np.append(rows, -1), items)


class _Translated:
    """A preranker of index rows, asked about items of the dataset."""

    def __init__(self, ranker: Ranker, rows: ItemRows) -> None:
        self._ranker = ranker
        self._row_of = rows.row_of

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        """As ``Ranker.score``."""
        of_rows = Requests(self._row_of[requests.triggers], requests.users, self._row_of[requests.histories])
        return self._ranker.score(
            of_rows, Candidates(candidates.head, self._row_of[candidates.items], candidates.scores)
        )


class _TranslatedSource(_Translated):
    """The same of a preranker that finds candidates of users."""

    def __init__(self, source: UserListSource, rows: ItemRows) -> None:
        super().__init__(source, rows)
        self._source = source
        self._item_of = rows.item_of

    def best_of_users(
        self, histories: Indices, found: Indices, k: int, may_answer: Callable[[Indices], npt.NDArray[np.bool_]]
    ) -> tuple[Indices, Scores]:
        """As ``UserListSource.best_of_users``; rows whose items the dataset does not have are no answers."""

        def row_may_answer(rows: Indices) -> npt.NDArray[np.bool_]:
            items = self._item_of[rows]
            return (items >= 0) & may_answer(items)

        rows, scores = self._source.best_of_users(self._row_of[histories], self._row_of[found], k, row_may_answer)
        return self._item_of[rows], scores
