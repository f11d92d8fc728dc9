"""Yardsticks that only count or compare: co-occurrence cosine, popularity, and the teacher's embeddings alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mtmh.data.arrays import Indices, Scores
from mtmh.data.dataset import Dataset
from mtmh.data.histories import Histories, concatenate
from mtmh.evaluation.cohort import Cohort
from mtmh.evaluation.protocol import Answers
from mtmh.index.vector_index import ExactIndex
from mtmh.retrieval.ranking import Candidates

_PRODUCT_ROWS = 255  # triggers whose co-occurrence rows are held at a time; packs with catalogues up to 16M items
_SEARCH_ROWS = 4096


def train_histories(dataset: Dataset) -> Histories:
    """All training histories of a dataset."""
    reader = dataset.history_reader()
    return concatenate([reader.read(group) for group in range(reader.num_groups)])


def engagement_matrix(histories: Histories, num_items: int) -> sparse.csr_matrix:
    """[users, num_items] float32: 1 where a user engaged with an item, however often."""
    ones = np.ones(len(histories.items), np.float32)
    # A copy: histories may be a view of a memory-mapped file, and the matrix sorts its indices in place.
    shape = (len(histories.offsets) - 1, num_items)
    engaged = sparse.csr_matrix((ones, histories.items, histories.offsets), shape=shape, copy=True)
    engaged.sum_duplicates()
    engaged.data[:] = 1.0
    return engaged


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
            rows, columns, values = _best_of_rows((self._by_item[part] @ self._by_user).tocsr(), part, k)
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


def _best_of_rows(similar: sparse.csr_matrix, own: Indices, k: int) -> tuple[Indices, Indices, npt.NDArray[np.float32]]:
    """The ``k`` largest entries of each row but the row's own item, ties to the lower column.

    Row, value and column are packed into one integer: a plain sort is many times faster than sorting by three keys.

    Args:
        similar: [R, I] with positive float32 entries.
        own: [R] columns left out.
        k: entries kept.

    Returns:
        rows, columns and values, by row and then value, descending.
    """
    rows = np.repeat(np.arange(similar.shape[0], dtype=np.uint64), np.diff(similar.indptr))
    column_bits, value_bits = np.uint64(int(similar.shape[1]).bit_length()), np.uint64(32)
    assert similar.shape[0] < 2 ** (64 - 32 - int(column_bits)), "too many rows to pack"
    descending = ~similar.data.view(np.uint32)  # the bits of positive floats sort as the floats do
    packed = ((rows << value_bits | descending) << column_bits) | similar.indices.astype(np.uint64)
    packed = np.sort(packed[similar.indices != own[rows.astype(np.intp)]])
    rows = (packed >> (column_bits + value_bits)).astype(np.intp)
    kept = np.arange(len(rows)) - np.searchsorted(rows, np.arange(len(own)))[rows] < k
    packed = packed[kept]
    columns = (packed & ((np.uint64(1) << column_bits) - np.uint64(1))).astype(np.int64)
    values = (~(packed >> column_bits).astype(np.uint32)).view(np.float32)
    return rows[kept], columns, values


def _first_allowed(ranking: Indices, allowed: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.int64]:
    """The first ``count`` allowed entries of each row; ``ranking`` [N] or [U, N], ``allowed`` [U, N]."""
    slots = np.cumsum(allowed, axis=1) - 1
    rows, columns = np.nonzero(allowed & (slots < count))
    lists = np.full((len(allowed), count), -1, np.int64)
    lists[rows, slots[rows, columns]] = np.broadcast_to(ranking, allowed.shape)[rows, columns]
    return lists
