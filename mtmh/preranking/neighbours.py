"""Tables from the users' histories: what goes with each item, added up over a history, and how popular each is.

items.npy      [I, N] int32: of each item those of the largest weights, -1: no further one
weights.npy    [I, N] float16

Two kinds of weights: the cosine of two items, users of both over the geometric mean of the users of each; and those of
a linear model in closed form (EASE, Steck, 2019), which tell items that go together from items that are popular both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Floats, Indices, falling, open_array, row_type
from mtmh.data.histories import Histories, HistoryReader

if TYPE_CHECKING:  # reading a table, as retrieval does, takes neither SciPy nor torch
    from scipy import sparse

NEIGHBOUR_ITEMS = Path("items.npy")
NEIGHBOUR_WEIGHTS = Path("weights.npy")

_REGULARIZATION = 250.0  # of the linear model, in users
_SHARD_ITEMS = 1024  # whose products are held at a time, at most
_LATE = 0.2  # of each history, at its end
_PACKED_BITS = 63  # of a number that is not negative
_CELLS_A_PAIR = 4  # of a table of all users and items: where it has no more, marking them costs less than sorting pairs


class NeighbourSums(Protocol):
    """Weights of neighbours, added up over the histories of users."""

    @property
    def num_users(self) -> int:
        """Users whose histories they are."""

    def of_users(self, part: slice) -> NeighbourSums:
        """As ``Sums.of_users``."""

    def of(self, candidates: Indices) -> Floats:
        """As ``Sums.of``."""

    def nearest(self, weight: int, k: int) -> npt.NDArray[np.int64]:
        """As ``Sums.nearest``."""


BothSums = tuple[NeighbourSums, NeighbourSums]  # of cosines and of linear weights


@dataclass(frozen=True)
class Sums:
    """Weights of neighbours, added up over the histories of U users.

    Attributes:
        keys: [P] `pair_keys` of users and the neighbours of their histories, ascending.
        values: [W, P] float32 sums, by each of W weights of the items of a history.
        num_users: U.
    """

    keys: npt.NDArray[np.int64]
    values: Floats
    num_users: int

    def of_users(self, part: slice) -> Sums:
        """Those of some users, who are numbered anew."""
        start, stop, _ = part.indices(self.num_users)
        low, high = np.searchsorted(self.keys, [start << 32, stop << 32])
        return Sums(self.keys[low:high] - (start << 32), self.values[:, low:high], stop - start)

    def of(self, candidates: Indices) -> Floats:
        """Sums [W, U, C] of candidates [U, C] (-1: none); 0 for what is no neighbour of anything."""
        wanted = pair_keys(np.arange(len(candidates))[:, None], candidates)
        if not len(self.keys):
            return np.zeros((len(self.values), *candidates.shape), np.float32)
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        found = (self.keys[place] == wanted) & (candidates >= 0)
        return np.where(found, self.values[:, place], np.float32(0.0))

    def nearest(self, weight: int, k: int) -> npt.NDArray[np.int64]:
        """Items [U, k] of the largest sums by one of the weights, the largest first, -1: no further one."""
        nearest = np.full((self.num_users, k), -1, np.int64)
        starts = np.searchsorted(self.keys, np.arange(self.num_users + 1) << 32).tolist()
        for own, start, end in zip(nearest, starts[:-1], starts[1:], strict=True):
            values = self.values[weight, start:end]
            places = np.arange(len(values))
            if k < len(values):
                places = np.flatnonzero(values >= np.partition(values, len(values) - k)[len(values) - k])
            # One sort of numbers is many times faster than a stable one of sums; equal sums stay in order by the place.
            packed = np.sort(falling(values[places]) << np.uint64(32) | places.astype(np.uint64))
            best = start + (packed[:k] & np.uint64(0xFFFFFFFF)).astype(np.intp)
            own[: len(best)] = self.keys[best] & 0xFFFFFFFF
        return nearest


class Neighbours:
    """The table; an item that is newer than it has no neighbours.

    Args:
        items: [I, N] int32, -1: none.
        weights: [I, N] float16.
    """

    def __init__(self, items: npt.NDArray[np.int32], weights: npt.NDArray[np.float16]) -> None:
        self.items = items
        self.weights = weights

    @classmethod
    def load(cls, folder: Path, num_items: int) -> Self:
        """Opens the files in a folder, memory-mapped.

        Raises:
            ValueError: they are missing, or of other items.
        """
        items = open_array(folder / NEIGHBOUR_ITEMS, np.int32, (num_items, None))
        return cls(items, open_array(folder / NEIGHBOUR_WEIGHTS, np.float16, items.shape))

    def sums(self, histories: Indices, weights: Floats) -> Sums:
        """Adds up over histories.

        Args:
            histories: [U, H] item indices, -1: padding.
            weights: [W, U, H] of the items of the histories.
        """
        users, places = np.nonzero((histories >= 0) & (histories < len(self.items)))
        rows = histories[users, places]
        items = self.items[rows]
        filled = items >= 0
        own, lengths = self.weights[rows][filled].astype(np.float32), np.count_nonzero(filled, axis=1)
        keys, pair = distinct_pairs(np.repeat(users, lengths), items[filled])
        values = np.stack(
            [
                np.bincount(pair, np.repeat(weight[users, places], lengths) * own, len(keys)).astype(np.float32)
                for weight in weights
            ]
        )
        return Sums(keys, values, len(histories))

    def taken(self, rows: Indices) -> Neighbours:
        """The table of some items, which are numbered anew; [R] their rows now, some of which may be newer than it."""
        new_row = np.full(max(len(self.items), int(rows.max(initial=-1)) + 1) + 1, -1, np.int32)
        new_row[rows] = np.arange(len(rows))
        old = rows < len(self.items)
        items = np.full((len(rows), self.items.shape[1]), -1, np.int32)
        items[old] = new_row[self.items[rows[old]]]
        weights = np.zeros(items.shape, np.float16)
        weights[old] = self.weights[rows[old]]
        return Neighbours(items, weights)

    def save(self, folder: Path) -> None:
        """Writes the files into a new folder."""
        folder.mkdir()
        np.save(folder / NEIGHBOUR_ITEMS, self.items)
        np.save(folder / NEIGHBOUR_WEIGHTS, self.weights)


def engagements(reader: HistoryReader, num_items: int) -> sparse.csr_matrix:
    """[users, I] float32: 1 where the user engaged with the item, however often."""
    from scipy import sparse

    return sparse.vstack(
        [engagement_matrix(reader.read(group), num_items) for group in range(reader.num_groups)], "csr"
    )


def engagement_matrix(histories: Histories, num_items: int) -> sparse.csr_matrix:
    """[users, num_items] float32: 1 where a user engaged with an item, however often."""
    from scipy import sparse

    ones = np.ones(len(histories.items), np.float32)
    # A copy: histories may be a view of a memory-mapped file, and the matrix sorts its indices in place.
    shape = (len(histories.offsets) - 1, num_items)
    engaged = sparse.csr_matrix((ones, histories.items, histories.offsets), shape=shape, copy=True)
    engaged.sum_duplicates()
    engaged.data[:] = 1.0
    return engaged


def cosine_neighbours(engaged: sparse.csr_matrix, width: int) -> Neighbours:
    """The items of the largest cosines of each, a shard of items at a time.

    Args:
        engaged: see `engagements`.
        width: neighbours of an item.
    """
    from scipy import sparse

    num_items = engaged.shape[1]
    counts = np.asarray(engaged.sum(axis=0)).ravel()
    by_user = (engaged @ sparse.diags_array(1.0 / np.sqrt(np.maximum(counts, 1.0)))).astype(np.float32).tocsr()
    by_item = by_user.T.tocsr()
    found = _empty(num_items, width)
    shard = max(1, min(_SHARD_ITEMS, (1 << 32 - num_items.bit_length()) - 1))  # rows that `best_of_rows` can pack
    for start in range(0, num_items, shard):
        own = np.arange(start, min(start + shard, num_items))
        rows, columns, values = best_of_rows((by_item[own] @ by_user).tocsr(), own, width)
        slots = np.arange(len(rows)) - np.searchsorted(rows, rows)
        found.items[start + rows, slots] = columns
        found.weights[start + rows, slots] = values
    return found


def linear_weights(engaged: sparse.csr_matrix, regularization: float) -> Floats:
    """Weights between all items of a linear model in closed form (EASE, Steck, 2019), that of an item for itself 0.

    ``B = I - P / diag(P)`` with ``P`` the inverse of ``X'X + regularization I``.

    Args:
        engaged: [U, I] of `engagement_matrix`; ``X``.
        regularization: lambda of the paper, in users.

    Returns:
        [I, I]; one such matrix is held.
    """
    import torch

    weights = torch.from_numpy((engaged.T @ engaged).toarray())
    weights.diagonal().add_(regularization)
    torch.linalg.cholesky(weights, out=weights)
    torch.cholesky_inverse(weights, out=weights)
    weights.div_(-weights.diagonal().clone())
    weights.fill_diagonal_(0.0)
    found: Floats = weights.numpy()
    return found


def linear_neighbours(engaged: sparse.csr_matrix, width: int, most_items: int) -> Neighbours:
    """The items of the largest weights of each in the linear model that foretells a history from its other items.

    The model inverts a matrix over all its items, so it is one of the items with the most users only.

    Args:
        engaged: see `engagements`.
        width: neighbours of an item.
        most_items: items of the model.
    """
    counts = np.asarray(engaged.sum(axis=0)).ravel()
    known = np.sort(np.argsort(-counts, kind="stable")[: min(most_items, int(np.count_nonzero(counts)))])
    found = _empty(engaged.shape[1], width)
    if len(known) < 2:
        return found
    weights = linear_weights(engaged[:, known], _REGULARIZATION)
    kept = min(width, len(known) - 1)
    places = np.argpartition(-np.abs(weights), kept - 1, axis=1)[:, :kept]
    found.items[known, :kept] = known[places]
    found.weights[known, :kept] = np.take_along_axis(weights, places, axis=1)
    return found


def _empty(num_items: int, width: int) -> Neighbours:
    if row_type(num_items) is not np.int32:
        raise ValueError(f"{num_items:,} items: co-occurrence is counted for as many as int32 can number")
    return Neighbours(np.full((num_items, width), -1, np.int32), np.zeros((num_items, width), np.float16))


def best_of_rows(similar: sparse.csr_matrix, own: Indices, k: int) -> tuple[Indices, Indices, Floats]:
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


def pair_keys(users: Indices, items: Indices) -> npt.NDArray[np.int64]:
    """One number for each <user, item>; none, -1, counts as item 0."""
    return users.astype(np.int64) << 32 | np.maximum(items, 0).astype(np.int64)


def distinct_pairs(users: Indices, items: Indices) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The distinct <user, item> among [P] pairs, by user and item.

    Args:
        users: [P], from 0.
        items: [P], from 0.

    Returns:
        `pair_keys` of the distinct ones, ascending, and the place of each pair among them [P].
    """
    width = int(items.max(initial=-1)) + 1
    cells = (int(users.max(initial=-1)) + 1) * width
    if cells > _CELLS_A_PAIR * len(items):
        return _sorted_pairs(users, items)
    cell = users.astype(np.int64) * width + items
    is_there = np.zeros(cells, bool)
    is_there[cell] = True
    found = np.flatnonzero(is_there)
    place = np.empty(cells, np.int64)
    place[found] = np.arange(len(found))
    return pair_keys(*np.divmod(found, width)), place[cell]


def _sorted_pairs(users: Indices, items: Indices) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """As `distinct_pairs`: each pair and its place are packed into one integer, which sorts in a fourth of the time."""
    item_bits, place_bits = int(items.max(initial=0)).bit_length(), len(items).bit_length()
    if int(users.max(initial=0)).bit_length() + item_bits + place_bits > _PACKED_BITS:
        return np.unique(pair_keys(users, items), return_inverse=True)
    packed = (users.astype(np.int64) << item_bits | items) << place_bits | np.arange(len(items))
    packed.sort()
    pairs = packed >> place_bits
    is_first = np.ones(len(pairs), bool)
    np.not_equal(pairs[1:], pairs[:-1], out=is_first[1:])
    place = np.empty(len(pairs), np.int64)
    place[packed & ((1 << place_bits) - 1)] = np.cumsum(is_first) - 1
    found = pairs[is_first]
    return pair_keys(found >> item_bits, found & ((1 << item_bits) - 1)), place


def item_popularity(reader: HistoryReader, num_items: int) -> npt.NDArray[np.float32]:
    """Logarithms of 1 + the events of each item, and of 1 + those in the last fifth of the users' histories, [I, 2]."""
    counts = np.zeros((2, num_items), np.int64)
    for group in range(reader.num_groups):
        histories = reader.read(group)
        lengths = np.diff(histories.offsets)
        last = np.ceil(_LATE * lengths).astype(np.int64)
        counts[0] += np.bincount(histories.items, minlength=num_items)
        counts[1] += np.bincount(histories.before(histories.offsets[1:], last).items, minlength=num_items)
    return np.log1p(counts.T).astype(np.float32)
