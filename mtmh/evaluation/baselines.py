"""Yardsticks that only count or compare: co-occurrence cosine, popularity, and the teacher's embeddings alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mtmh.data.arrays import Indices, Scores
from mtmh.evaluation.cohort import Cohort
from mtmh.evaluation.pipeline import Answers
from mtmh.index.vector_index import ExactIndex
from mtmh.preranking.neighbours import best_of_rows
from mtmh.retrieval.ranking import Candidates

_PRODUCT_ROWS = 255  # triggers whose co-occurrence rows are held at a time; packs with catalogues up to 16M items
_SEARCH_ROWS = 4096


class Cooccurrence:
    """Item-item cosine: users of both items over the geometric mean of the users of each.

    Args:
        engaged: [U, I] of `engagement_matrix`, of the training period.
    """

    def __init__(self, engaged: sparse.csr_matrix) -> None:
        users_of_item = np.asarray(engaged.sum(axis=0)).ravel()
        scaled = sparse.diags(1.0 / np.sqrt(np.maximum(users_of_item, 1.0)))
        self._by_user = (engaged @ scaled).astype(np.float32).tocsr()
        self._by_item = self._by_user.T.tocsr()
        # So little that it decides among equal sums only, those of 0 included.
        self._popularity = (1e-6 * users_of_item / max(1.0, users_of_item.max(initial=0.0))).astype(np.float32)

    def search(self, triggers: Indices, k: int) -> Candidates:
        """The ``k`` items of largest cosine; items without a common user are no candidates. Returns [T, k]."""
        items = np.full((len(triggers), k), -1, np.int32)
        scores = np.full((len(triggers), k), -np.inf, np.float32)
        for start in range(0, len(triggers), _PRODUCT_ROWS):
            part = triggers[start : start + _PRODUCT_ROWS]
            rows, columns, values = best_of_rows((self._by_item[part] @ self._by_user).tocsr(), part, k)
            slots = np.arange(len(rows)) - np.searchsorted(rows, rows)
            items[start + rows, slots] = columns
            scores[start + rows, slots] = values
        return Candidates("co-occurrence", items, scores)

    def score(self, histories: sparse.csr_matrix) -> Scores:
        """Sums of the cosines to the items of each history, itself left out, ties by popularity; [B, I] -> [B, I]."""
        sums = ((histories @ self._by_item) @ self._by_user).toarray() + self._popularity
        return np.asarray(sums - histories.toarray(), dtype=np.float32)


class ContentSearch:
    """Exact search over the teacher's embeddings; items without content neither ask nor answer.

    Args:
        vectors: [I, Dc] float32 unit-length rows, zero rows for items without content.
    """

    def __init__(self, vectors: npt.NDArray[np.float32]) -> None:
        self._vectors = vectors
        self._has_content = np.einsum("id,id->i", vectors, vectors) > 0.5
        self._there = np.flatnonzero(self._has_content)
        self._index = ExactIndex.build(vectors[self._there])

    def score(self, histories: sparse.csr_matrix) -> Scores:
        """Sums of the cosines to the items of each history; -inf for items without content; [B, I] -> [B, I]."""
        sums = (histories @ self._vectors) @ self._vectors.T
        return np.where(self._has_content, sums, np.float32(-np.inf))

    def search(self, triggers: Indices, k: int) -> Candidates:
        """The ``k`` items of largest cosine. Returns [T, k]."""
        items = np.full((len(triggers), k), -1, np.int32)
        scores = np.full((len(triggers), k), -np.inf, np.float32)
        asking = np.flatnonzero(self._has_content[triggers])
        for start in range(0, len(asking), _SEARCH_ROWS):
            rows_asking = asking[start : start + _SEARCH_ROWS]
            part = triggers[rows_asking]
            similar, places = self._index.search(self._vectors[part], k + 1)
            found = np.where(places >= 0, self._there[places], -1)
            wanted = (found >= 0) & (found != part[:, None])
            slots = np.cumsum(wanted, axis=1) - 1
            rows, columns = np.nonzero(wanted & (slots < k))
            items[rows_asking[rows], slots[rows, columns]] = found[rows, columns]
            scores[rows_asking[rows], slots[rows, columns]] = similar[rows, columns]
        return Candidates("content", items, scores)


def popularity(
    cohort: Cohort, train_count: npt.NDArray[np.int64], *, k: int, length: int
) -> tuple[Answers, npt.NDArray[np.int64]]:
    """The most popular items for everyone.

    Every trigger has the same answers, so that sorting them would leave a list of K items only; the user's list is
    therefore filled from the same ranking down to its full length.

    Args:
        cohort: U users.
        train_count: [I] events of the training period.
        k: answers a trigger.
        length: of a user's list.

    Returns:
        K answers of every <user, trigger>; lists [U, length].
    """
    most_seen = int(np.diff(cohort.seen.offsets).max(initial=0))
    ranking = np.argsort(-train_count, kind="stable")[: length + k + most_seen + 1]
    place = np.full(len(train_count), -1)
    place[ranking] = np.arange(len(ranking))
    allowed = np.ones((cohort.num_users, len(ranking)), dtype=bool)
    seen_users = np.repeat(np.arange(cohort.num_users), np.diff(cohort.seen.offsets))
    seen_places = place[cohort.seen.items]
    allowed[seen_users[seen_places >= 0], seen_places[seen_places >= 0]] = False
    lists = _first_allowed(ranking, allowed, max(length, k + 1))
    users, columns = np.nonzero(cohort.triggers >= 0)
    triggers = cohort.triggers[users, columns]
    # One more than k, for the trigger itself takes no slot (it can be there when seen items are not excluded).
    wider = lists[users, : k + 1]
    items = _first_allowed(wider, (wider >= 0) & (wider != triggers[:, None]), k)
    return Answers(users, triggers, items), lists[:, :length]


def _first_allowed(ranking: Indices, allowed: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.int64]:
    """The first ``count`` allowed entries of each row; ``ranking`` [N] or [U, N], ``allowed`` [U, N]."""
    slots = np.cumsum(allowed, axis=1) - 1
    rows, columns = np.nonzero(allowed & (slots < count))
    lists = np.full((len(allowed), count), -1, np.int64)
    lists[rows, slots[rows, columns]] = np.broadcast_to(ranking, allowed.shape)[rows, columns]
    return lists
