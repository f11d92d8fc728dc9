"""Prerankers: which candidates of each head go on, and one score by which answers of all heads are sorted.

The paper's preranker is a learned multi-task user-to-item model (section 3.5). The two here are not learned; they rest
on the item embeddings alone and stand behind the interface that a learned one implements as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]
Indices = npt.NDArray[np.integer[Any]]

_GATHERED_FLOATS = 33_554_432  # bounds the memory of gathered embeddings (128 MiB)
_DENSE_SCORES = 67_108_864  # bounds the memory of all scores of all queries (256 MiB)
_DENSE_GAIN = 16  # scores of a dense product for the price of one gathered embedding, about


@dataclass(frozen=True)
class Candidates:
    """Candidates of T triggers under one head, best first.

    Attributes:
        head: whose candidates they are.
        items: [T, C] item indices, -1: no candidate.
        scores: [T, C] float32 similarity to the trigger under that head, -inf: no candidate.
    """

    head: str
    items: Indices
    scores: Scores


@dataclass(frozen=True)
class Requests:
    """Who asks: T triggers of U users.

    Attributes:
        triggers: [T] item indices.
        users: [T] row of each trigger's user in ``histories``.
        histories: [U, H] item indices the user engaged with, -1: padding.
    """

    triggers: Indices
    users: Indices
    histories: Indices

    @staticmethod
    def anonymous(triggers: Indices) -> Requests:
        """Triggers without a user: each is its own history."""
        return Requests(triggers, np.arange(len(triggers)), triggers[:, None])


class Preranker(Protocol):
    """Scores candidates for a user."""

    def score(self, requests: Requests, candidates: Candidates, head: str) -> Scores:
        """Scores all candidates of all triggers in one product.

        Args:
            requests: the T triggers and their users.
            candidates: [T, C].
            head: under which head to judge. Each head's own candidates are ranked under that head; the final sort of
                a user's answers judges all of them under the first (engagement) head, so that scores compare.

        Returns:
            [T, C] float32, larger is better; -inf where there is no candidate.
        """


class HeadScorePreranker:
    """The similarity of candidate and trigger under the judging head: keeps the order of the search.

    Args:
        vectors: head name -> [I, D] float32 unit-length embeddings.
    """

    def __init__(self, vectors: Mapping[str, Vectors]) -> None:
        self._vectors = vectors

    def score(self, requests: Requests, candidates: Candidates, head: str) -> Scores:
        """As ``Preranker.score``."""
        if head == candidates.head:
            return candidates.scores
        return _products(self._vectors[head], self._vectors[head][requests.triggers], candidates.items)


class HistoryPreranker:
    """User-to-item: the similarity of candidate and user, the mean of the history's embeddings under one head.

    Args:
        vectors: [I, D] float32 unit-length embeddings of the engagement head, which judges for every head.
    """

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def score(self, requests: Requests, candidates: Candidates, head: str) -> Scores:
        """As ``Preranker.score``; the judging head makes no difference."""
        del head
        users = self._pooled(requests.histories)
        return _products(self._vectors, users, candidates.items, requests.users)

    def _pooled(self, histories: Indices) -> Vectors:
        """[U, H] -> [U, D]; an empty history gives zeros."""
        there = (histories >= 0)[:, :, None]
        total = np.where(there, self._vectors[histories], np.float32(0)).sum(axis=1)
        return np.asarray(total / np.maximum(there.sum(axis=1), 1), dtype=np.float32)


def prerank(
    preranker: Preranker,
    requests: Requests,
    candidates: Candidates,
    k: int,
    banned: npt.NDArray[np.bool_] | None = None,
) -> Candidates:
    """Keeps the K best candidates of each trigger of one head (paper: per-head preranking).

    Args:
        preranker: who scores.
        requests: the T triggers and their users.
        candidates: [T, C] of one head.
        k: candidates kept.
        banned: [T, C], candidates that must not be kept.

    Returns:
        [T, K], best first by preranking score, ties in the order of the search; scores are still similarities.
    """
    ranking = preranker.score(requests, candidates, candidates.head)
    gone = candidates.items < 0 if banned is None else (candidates.items < 0) | banned
    ranking = np.where(gone, np.float32(-np.inf), ranking)
    columns = top_columns(ranking, k)
    there = np.isfinite(np.take_along_axis(ranking, columns, axis=1))
    kept = Candidates(
        candidates.head,
        np.where(there, np.take_along_axis(candidates.items, columns, axis=1), -1),
        np.where(there, np.take_along_axis(candidates.scores, columns, axis=1), np.float32(-np.inf)),
    )
    missing = ((0, 0), (0, k - columns.shape[1]))
    return Candidates(
        kept.head,
        np.pad(kept.items, missing, constant_values=-1),
        np.pad(kept.scores, missing, constant_values=-np.inf),
    )


def top_columns(scores: Scores, k: int) -> npt.NDArray[np.intp]:
    """Columns of the ``min(k, C)`` largest scores of each row, descending, ties in column order. [T, C] -> [T, k]."""
    if scores.shape[1] > k:
        threshold = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
        above, ties = scores > threshold, scores == threshold
        room = k - above.sum(axis=1, keepdims=True)
        chosen = above | (ties & (np.cumsum(ties, axis=1) <= room))
        columns = np.nonzero(chosen)[1].reshape(len(scores), k)
    else:
        columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def _products(vectors: Vectors, queries: Vectors, items: Indices, query_of_row: Indices | None = None) -> Scores:
    """Inner products of each row's query and its items.

    Args:
        vectors: [I, D].
        queries: [Q, D].
        items: [T, C], -1: none.
        query_of_row: [T] row of ``queries``; None: row t asks with query t.

    Returns:
        [T, C] float32, -inf where there is no item.
    """
    rows = np.arange(len(items)) if query_of_row is None else query_of_row
    if len(queries) * len(vectors) <= min(_DENSE_GAIN * items.size, _DENSE_SCORES):
        # Many candidates of few queries: one dense product is cheaper than gathering each candidate's embedding.
        scores = (queries @ vectors.T)[rows[:, None], items]
    else:
        scores = np.empty(items.shape, np.float32)
        block = max(1, _GATHERED_FLOATS // max(1, items.shape[1] * vectors.shape[1]))
        for start in range(0, len(items), block):
            part = slice(start, start + block)
            scores[part] = np.matmul(vectors[items[part]], queries[rows[part], :, None])[:, :, 0]
    return np.where(items >= 0, scores, np.float32(-np.inf))
