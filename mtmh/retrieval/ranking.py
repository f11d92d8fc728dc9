"""Prerankers: which candidates of each head go on, and one score by which answers of all heads are sorted.

The paper's preranker is a learned multi-task user-to-item model (section 3.5). The two here are not learned; they rest
on the item embeddings alone and stand behind the interface that a learned one implements as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtmh.data.arrays import Indices, Mask, Scores, Vectors
from mtmh.data.item_vectors import ItemVectors

USER = "user"  # in the place of a head: what all that is known of the user speaks for

_GATHERED_FLOATS = 8_388_608  # bounds the memory of gathered embeddings (32 MiB)


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

    def beside(self, others: Candidates) -> Candidates:
        """These and others of the same triggers and head, which come after them."""
        return Candidates(
            self.head,
            np.concatenate([self.items, others.items], axis=1),
            np.concatenate([self.scores, others.scores], axis=1),
        )


@dataclass(frozen=True)
class Requests:
    """T triggers of U users, for which candidates are ranked.

    Attributes:
        triggers: [T] item indices.
        users: [T] row of each trigger's user in ``histories``.
        histories: [U, H] item indices the user engaged with, the latest first, -1: padding.
    """

    triggers: Indices
    users: Indices
    histories: Indices

    @staticmethod
    def anonymous(triggers: Indices) -> Requests:
        """Triggers without a user: each is its own history."""
        return Requests(triggers, np.arange(len(triggers)), triggers[:, None])


class Ranker(Protocol):
    """Scores candidates for a user.

    Retrieval uses one to keep the best of each head, and one to sort the answers of all heads and triggers; a learned
    user-to-item model serves as both.
    """

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        """Scores all candidates of all triggers in batched products.

        Args:
            requests: the T triggers and their users.
            candidates: [T, C].

        Returns:
            [T, C] float32, larger is better; -inf where there is no candidate.
        """


@runtime_checkable
class UserListSource(Protocol):
    """A preranker whose scores speak of the whole history, and that finds candidates by it for many users at once."""

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        """As ``Ranker.score``; the same for all triggers of a user."""

    def best_of_users(
        self, histories: Indices, found: Indices, k: int, may_answer: Callable[[Indices], npt.NDArray[np.bool_]]
    ) -> tuple[Indices, Scores]:
        """The best of what the heads found and of its own candidates, for many users.

        Args:
            histories: [U, H] item indices, the latest first, -1: padding.
            found: [U, N] item indices, -1: none.
            k: answers a user.
            may_answer: of items [U, C], which may be answers of the user; -1 may be among them.

        Returns:
            [U, k] item indices, best first, -1: none, and their scores.
        """


@runtime_checkable
class UserSource(Ranker, Protocol):
    """A preranker that finds candidates for one user, and keeps what it has scored."""

    def propose(
        self, requests: Requests, found: Sequence[Candidates], k: int, allowed: Mask | None
    ) -> tuple[Candidates, Ranker]:
        """The best of what the heads found and of its own candidates.

        Args:
            requests: the T triggers of one user.
            found: candidates of the heads, [T, C_h].
            k: how many.
            allowed: [I]; None: all.

        Returns:
            [T, N] candidates, each at the trigger that it is most similar to; and a preranker that knows the scores of
            these and of all that were found, so that nothing is scored twice.
        """


@runtime_checkable
class Extensible(Protocol):
    """A preranker that holds something of every item, and can take in items added since the index was built."""

    def with_added(self, items: pa.Table, added: Mapping[str, Vectors], vectors: Mapping[str, ItemVectors]) -> Ranker:
        """One for N more items at the end of the catalogue.

        Args:
            items: N rows, ``item_id`` and what is known of their features.
            added: head -> [N, D] float32 embeddings of them.
            vectors: head -> embeddings of all items, these included.
        """


@runtime_checkable
class CoOccurrence(Protocol):
    """A preranker that holds a table of what users engage with together."""

    def engaged_with(self, item: int) -> tuple[npt.NDArray[np.int64], Scores]:
        """Items by their cosine to one, the largest first: users of both over the geometric mean of those of each."""


class HeadScorePreranker:
    """The similarity of candidate and trigger, under the head that found it or under one judging head for all.

    Both defaults of retrieval, chosen by recall on the synthetic data (3,000 items, MTMH of 320 steps, alpha = 50):

    - Under the head that found it, to keep the best of each head. A score that ignores the trigger keeps the same few
      items for all triggers of a user: recall@500 of 17 % by ``HistoryPreranker``, 46 % so (after 90 steps).
    - Under the engagement head, to sort the answers of all heads, whose own similarities do not compare. recall@20, 100
      and 500: 7.2, 24.4, 48.0 %; by ``HistoryPreranker`` 7.1, 23.8, 47.8 % (but recall@5 is 2.9 against 2.6 %);
      by the mean of the history 5.6, 21.4, 47.7 %.

    Args:
        judge: name and embeddings [I, D] float32 of the head that judges; None: the head that found the candidate.
    """

    def __init__(self, judge: tuple[str, ItemVectors] | None = None) -> None:
        self.judge = judge

    def with_added(
        self, items: pa.Table, added: Mapping[str, Vectors], vectors: Mapping[str, ItemVectors]
    ) -> HeadScorePreranker:
        """As ``Extensible.with_added``."""
        del items, added
        return self if self.judge is None else HeadScorePreranker((self.judge[0], vectors[self.judge[0]]))

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        """As ``Ranker.score``."""
        if self.judge is None or self.judge[0] == candidates.head:
            return candidates.scores
        _, vectors = self.judge
        scores = np.empty(candidates.items.shape, np.float32)
        block = max(1, _GATHERED_FLOATS // max(1, candidates.items.shape[1] * vectors.shape[1]))
        for start in range(0, len(scores), block):
            part = slice(start, start + block)
            triggers = vectors[requests.triggers[part]]
            scores[part] = np.matmul(vectors[candidates.items[part]], triggers[:, :, None])[:, :, 0]
        return np.where(candidates.items >= 0, scores, np.float32(-np.inf))


class HistoryPreranker:
    """User-to-item: soft maximum of a candidate's similarity to the items of the history, under one head.

    ``temperature * log(sum_h exp(<E_h, E_c> / temperature))``; for a history of one item it is the cosine. With the
    engagement head's embeddings and the temperature of its loss, ``exp(<E_h, E_c> / temperature)`` is what the
    co-engagement loss (paper, equation 1) learns as the odds of c following h.

    Args:
        head: whose embeddings these are, by its name.
        vectors: [I, D] float32 unit-length embeddings of that head: the engagement head, as a rule.
        temperature: small: the most similar item of the history decides; large: their mean.
    """

    def __init__(self, head: str, vectors: ItemVectors, temperature: float) -> None:
        self._head = head
        self._vectors = vectors
        self._temperature = np.float32(temperature)

    def with_added(
        self, items: pa.Table, added: Mapping[str, Vectors], vectors: Mapping[str, ItemVectors]
    ) -> HistoryPreranker:
        """As ``Extensible.with_added``."""
        del items, added
        return HistoryPreranker(self._head, vectors[self._head], float(self._temperature))

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        """As ``Ranker.score``; one product a user, of the history and the user's distinct candidates."""
        scores = np.full(candidates.items.shape, -np.inf, np.float32)
        order = np.argsort(requests.users, kind="stable")
        _, starts = np.unique(requests.users[order], return_index=True)
        for start, end in zip(starts, [*starts[1:], len(order)], strict=False):
            rows = order[start:end]
            items, places = np.unique(candidates.items[rows], return_inverse=True)
            history = requests.histories[requests.users[rows[0]]]
            scores[rows] = self._soft_maximum(history[history >= 0], items)[places].reshape(len(rows), -1)
        return np.where(candidates.items >= 0, scores, np.float32(-np.inf))

    def _soft_maximum(self, history: Indices, items: Indices) -> Scores:
        """Scores [N] of items [N] for a history [H]; an empty history gives -inf."""
        if len(history) == 0:
            return np.full(len(items), -np.inf, np.float32)
        logits = self._vectors[items] @ self._vectors[history].T / self._temperature
        largest = logits.max(axis=1)
        sums = np.exp(logits - largest[:, None]).sum(axis=1)
        return np.asarray(self._temperature * (largest + np.log(sums)), dtype=np.float32)


def keeps_order(preranker: Ranker) -> bool:
    """True if the best candidates of a head are the first that its search finds, so that no others are needed."""
    return type(preranker) is HeadScorePreranker and preranker.judge is None


def prerank(
    preranker: Ranker,
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
    ranking = preranker.score(requests, candidates)
    gone = candidates.items < 0 if banned is None else (candidates.items < 0) | banned
    ranking = np.where(gone, np.float32(-np.inf), ranking)
    columns = top_columns(ranking, k)
    present = np.isfinite(np.take_along_axis(ranking, columns, axis=1))
    kept = Candidates(
        candidates.head,
        np.where(present, np.take_along_axis(candidates.items, columns, axis=1), -1),
        np.where(present, np.take_along_axis(candidates.scores, columns, axis=1), np.float32(-np.inf)),
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
