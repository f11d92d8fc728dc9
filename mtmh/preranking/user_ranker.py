"""Ranks the candidates of users by all that is known of them: the model's logits and what else there is as evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtmh.artifacts import open_artifact
from mtmh.data.arrays import Floats, Indices, open_array
from mtmh.data.item_vectors import ItemVectors, StackedVectors
from mtmh.preranking.artifact import COMBINATION, COOCCURRENCE, LINEAR, POPULARITY
from mtmh.preranking.evidence import Evidence
from mtmh.preranking.forward import CombinedEvidence, probability
from mtmh.preranking.neighbours import BothSums, Neighbours
from mtmh.preranking.scorer import Scorer, read_summary


class UserRanker:
    """The user-to-item model, the evidence beside its logits, and how they are combined. Safe to use from many threads.

    Args:
        scorer: the model.
        evidence: about candidates, its logits among it.
        combination: of the evidence.
    """

    def __init__(self, scorer: Scorer, evidence: Evidence, combination: CombinedEvidence) -> None:
        self.scorer = scorer
        self.evidence = evidence
        self.combination = combination

    @classmethod
    def load(cls, folder: Path, vectors: Mapping[str, ItemVectors]) -> Self:
        """Opens a preranker artifact; tables are memory-mapped.

        Args:
            folder: of the artifact.
            vectors: head -> [I, D] unit-length embeddings, of the heads that it was trained with at least.

        Raises:
            ValueError: no preranker artifact there, or it knows other items or heads.
        """
        scorer = Scorer.load(folder)
        made = read_summary(open_artifact(folder, "preranker"))
        num_items = made.num_items
        for head in made.heads:
            if head not in vectors:
                raise ValueError(f"{folder}: a preranker that compares by head {head}, which is not there")
            if len(vectors[head]) != num_items:
                raise ValueError(f"{folder}: a preranker of {num_items} items, the index has {len(vectors[head])}")
        popularity = open_array(folder / POPULARITY, np.float32, (num_items, None))
        evidence = Evidence(
            {head: vectors[head] for head in made.heads},
            Neighbours.load(folder / COOCCURRENCE, num_items),
            Neighbours.load(folder / LINEAR, num_items),
            StackedVectors(popularity),
            made.history_length,
        )
        combination = CombinedEvidence.load(folder / COMBINATION, len(evidence.names), made.combination_hidden)
        return cls(scorer, evidence, combination)

    def with_added(
        self, items: pa.Table, added: Mapping[str, Floats], vectors: Mapping[str, ItemVectors]
    ) -> UserRanker:
        """One for N more items at the end of the catalogue, without events and neighbours.

        Args:
            items: N rows, ``item_id`` and raw features.
            added: head -> [N, D] of them.
            vectors: head -> embeddings of all items, these included.
        """
        evidence = self.evidence.with_added({head: vectors[head] for head in self.evidence.vectors}, len(items))
        return UserRanker(self.scorer.with_added(items, added), evidence, self.combination)

    def score(self, histories: Indices, candidates: Indices, sums: BothSums | None = None) -> Floats:
        """The tasks' probabilities, weighted and added up, where the combination speaks for the engagement.

        Args:
            histories: [U, H] item indices, the latest first, at least one a user; -1: padding.
            candidates: [U, C] item indices, -1: none.
            sums: as for ``Evidence``.

        Returns:
            [U, C]; -inf where there is no candidate.
        """
        queries, biases = self.scorer.queries(histories, np.arange(len(histories)), histories[:, 0])
        scores = np.empty(candidates.shape, np.float32)
        for rows, logits in self.scorer.logits(queries, biases, candidates):
            own = None if sums is None else (sums[0].of_users(rows), sums[1].of_users(rows))
            evidence = self.evidence(histories[rows], candidates[rows], logits[:, 0], own)
            logits[:, 0] = self.combination(evidence)
            tasks = self.scorer.tasks
            scores[rows] = sum(task.weight * probability(logits, task.label) for task in tasks)
        return np.where(candidates >= 0, scores, np.float32(-np.inf))

    def judged(
        self,
        histories: Indices,
        found: Indices,
        k: int,
        may_answer: Callable[[Indices], npt.NDArray[np.bool_]],
        more: int = 0,
    ) -> tuple[Indices, Floats]:
        """Candidates that others found, those that go with the histories, and popular items, with their scores.

        Args:
            histories: as in `score`.
            found: [U, N] candidates, -1: none.
            k: candidates of each source.
            may_answer: of items [U, C], which may be answers of the user; -1 may be among them.
            more: looked at of each source in the place of those that may not; its first ``k`` that may are candidates.

        Returns:
            [U, P] distinct item indices, ascending, -1 (none) before them, and their scores.
        """
        sums = self.evidence.sums(histories)
        proposed = [first_allowed(items, k, may_answer) for items in self.evidence.proposed(sums, k + more)]
        parts = [np.where(may_answer(found), found, -1), *proposed]
        pool = narrowest(distinct(np.concatenate(parts, axis=1)))
        return pool, self.score(histories, pool, sums)


def first_allowed(items: Indices, k: int, may_answer: Callable[[Indices], npt.NDArray[np.bool_]]) -> Indices:
    """The first ``k`` of each row of items [U, C] that may be answers, in their places, -1 in those of all others."""
    allowed = may_answer(items) & (items >= 0)
    return np.where(allowed & (np.cumsum(allowed, axis=1) <= k), items, -1)


def distinct(items: Indices) -> Indices:
    """The distinct items of each row [U, N], ascending, -1 in the place of repeated ones and of none."""
    ordered = np.sort(items, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    return ordered


def narrowest(items: Indices) -> Indices:
    """Rows of items [U, N], ascending but for -1 (none): -1 before them, and as narrow as the fullest row allows."""
    if len(items) == 1:
        return items[items >= 0][None, :]
    widest = int(np.count_nonzero(items >= 0, axis=1).max(initial=0))
    return np.sort(items, axis=1)[:, items.shape[1] - widest :]
