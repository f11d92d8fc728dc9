"""Answers of a retriever: the items of each list, with ids in the place of row numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices, ItemId, Scores
from mtmh.retrieval.catalogue import Catalogue, ItemDescription
from mtmh.retrieval.merge import quota_merge
from mtmh.retrieval.ranking import Candidates, Ranker, Requests
from mtmh.retrieval.user_list import UserList

TOGETHER = "together"  # in the place of a head: plain co-occurrence
POPULAR = "popular"  # in the place of a head: what most users engaged with, for triggers of which nothing is known


@dataclass(frozen=True)
class RetrievedItem:
    """One answer.

    Attributes:
        item: its id.
        score: comparable over all triggers and heads of a request: the similarity to the trigger under the engagement
            head, unless the retriever has another sorter. Of a popular item: its share of the training events.
        similarity: to the trigger, under the head that brought it, or in the learned preranker; None: a popular item.
        head: the head that brought it, ``user`` (all that is known of the user), or ``popular``.
        trigger: the id of the trigger it answers; None: none of the history was known.
    """

    item: ItemId
    score: float
    similarity: float | None
    head: str
    trigger: ItemId | None


@dataclass(frozen=True)
class SideBySide:
    """Answers of each head alone and of the merge to one trigger, with the columns that a person wants to see.

    Attributes:
        trigger: its id.
        alpha: of the merge.
        heads: answers of each head alone.
        merged: the merge.
        together: items by plain co-occurrence, to compare with; None: the index has no table of it.
        descriptions: of all items of the answers.
    """

    trigger: ItemId
    alpha: float
    heads: dict[str, list[RetrievedItem]]
    merged: list[RetrievedItem]
    together: list[RetrievedItem] | None
    descriptions: dict[ItemId, ItemDescription]


@dataclass(frozen=True)
class AnswerRows:
    """N answers to T triggers as arrays, those of a trigger together and in their order.

    Attributes:
        triggers: [N] int64, place of the trigger among the T.
        items: [N] int64 item indices.
        scores: [N] float32, as `RetrievedItem.score`.
        similarities: [N] float32.
        heads: [N] int8, place of the head in ``names``.
        names: of the heads.
    """

    triggers: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    scores: Scores
    similarities: Scores
    heads: npt.NDArray[np.int8]
    names: list[str]


def answer_rows(
    requests: Requests, kept: Sequence[Candidates], quotas: Mapping[str, int], sorter: Ranker
) -> AnswerRows:
    """Merges the heads' candidates of each trigger by quota, scored by the sorter."""
    merged = quota_merge([found.items for found in kept], [quotas[found.head] for found in kept])
    scores = merged.take([sorter.score(requests, found) for found in kept])
    similarities = merged.take([found.scores for found in kept])
    rows, slots = np.nonzero(merged.items >= 0)
    return AnswerRows(
        rows,
        merged.items[rows, slots],
        scores[rows, slots],
        similarities[rows, slots],
        merged.heads[rows, slots],
        [found.head for found in kept],
    )


def trigger_answers(
    requests: Requests, kept: Sequence[Candidates], quotas: Mapping[str, int], sorter: Ranker, catalogue: Catalogue
) -> list[list[RetrievedItem]]:
    """Merges the heads' candidates of each trigger by quota; one list a trigger, scored by the sorter."""
    found = answer_rows(requests, kept, quotas, sorter)
    trigger_ids = catalogue.ids(requests.triggers)
    answers: list[list[RetrievedItem]] = [[] for _ in trigger_ids]
    for row, item, score, similarity, head in zip(
        found.triggers.tolist(),
        catalogue.ids(found.items),
        found.scores.tolist(),
        found.similarities.tolist(),
        found.heads.tolist(),
        strict=True,
    ):
        answers[row].append(RetrievedItem(item, score, similarity, found.names[head], trigger_ids[row]))
    return answers


def user_answers(found: UserList, heads: Sequence[str], catalogue: Catalogue) -> list[RetrievedItem]:
    """The list of a user; ``heads`` are those that took part."""
    return [
        RetrievedItem(item, score, similarity, heads[head], trigger)
        for item, score, similarity, head, trigger in zip(
            catalogue.ids(found.items),
            found.scores.tolist(),
            found.similarities.tolist(),
            found.heads.tolist(),
            catalogue.ids(found.triggers),
            strict=True,
        )
    ]


def popular_answers(catalogue: Catalogue, items: Indices, trigger: ItemId | None) -> list[RetrievedItem]:
    """Popular items, marked as such."""
    shares = catalogue.popularity(items).tolist()
    return [
        RetrievedItem(item, share, None, POPULAR, trigger)
        for item, share in zip(catalogue.ids(items), shares, strict=True)
    ]
