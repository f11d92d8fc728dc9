"""Numbers for the distinct <user, item> pairs of a ranking, so that marks and best scores of them are plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices, Scores, falling
from mtmh.preranking.neighbours import distinct_pairs, pair_keys

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UserItems:
    """The distinct items of U users, numbered by user and item from 0 to N - 1; N stands for no item.

    Attributes:
        keys: [N] `pair_keys`, ascending.
        num_users: U.
    """

    keys: Numbers
    num_users: int

    @staticmethod
    def number(users: Sequence[Indices], items: Sequence[Indices], num_users: int) -> tuple[UserItems, list[Numbers]]:
        """Numbers the items of several tables.

        Args:
            users: of each table, [R] users of its rows, from 0 to U - 1.
            items: [R, C] of each table, -1: none.
            num_users: U.

        Returns:
            the pairs, and by table the numbers of its items [R, C].
        """
        present = [table >= 0 for table in items]
        owners = [
            np.broadcast_to(rows[:, None], table.shape)[there]
            for rows, table, there in zip(users, items, present, strict=True)
        ]
        keys, place = distinct_pairs(
            np.concatenate(owners), np.concatenate([table[there] for table, there in zip(items, present, strict=True)])
        )
        numbers, start = [], 0
        for there, of_table in zip(present, owners, strict=True):
            own = place[start : start + len(of_table)]
            start += len(of_table)
            if len(own) == there.size:
                numbers.append(own.reshape(there.shape))
            else:
                numbers.append(np.full(there.shape, len(keys)))
                numbers[-1][there] = own
        return UserItems(keys, num_users), numbers

    @cached_property
    def items(self) -> Numbers:
        """[N] item indices."""
        return self.keys & 0xFFFFFFFF

    @cached_property
    def owners(self) -> Numbers:
        """[N] users, ascending."""
        return self.keys >> 32

    @cached_property
    def starts(self) -> Numbers:
        """[U + 1] the first pair of each user, and N."""
        return np.searchsorted(self.keys, np.arange(self.num_users + 1) << 32)

    def rows(self) -> Numbers:
        """[U, C] the items of each user, ascending, -1: no further one."""
        sizes = np.diff(self.starts)
        table = np.full((self.num_users, int(sizes.max(initial=0))), -1, np.int64)
        table[self.owners, np.arange(len(self.keys)) - self.starts[self.owners]] = self.items
        return table

    def with_items(self, items: Indices, numbers: Sequence[Numbers]) -> tuple[UserItems, Numbers, list[Numbers]]:
        """Adds items of the users.

        Args:
            items: [U, C], -1: none.
            numbers: of pairs that there are, in tables of any shape.

        Returns:
            the pairs, the numbers of the items [U, C] among them, and the tables by the new numbers.
        """
        added = pair_keys(np.arange(len(items))[:, None], items)[items >= 0]
        keys = np.sort(np.concatenate([self.keys, added]))  # np.union1d is slower
        joined = UserItems(keys[np.flatnonzero(np.diff(keys, prepend=-1))], self.num_users)
        number = np.append(np.searchsorted(joined.keys, self.keys), len(joined.keys))
        return joined, joined.find(items), [number[table] for table in numbers]

    def find(self, items: Indices) -> Numbers:
        """Numbers of items [U, C] of the users, N: -1, or an item that is not there."""
        wanted = pair_keys(np.arange(len(items))[:, None], items)
        place = np.minimum(np.searchsorted(self.keys, wanted), max(0, len(self.keys) - 1))
        if not len(self.keys):
            return place
        return np.where((self.keys[place] == wanted) & (items >= 0), place, len(self.keys))

    def by_score(self, scores: Scores) -> Numbers:
        """Pairs by user, the largest score [N] first, ties to the lower item; those of infinite scores are left out."""
        known = np.flatnonzero(np.isfinite(scores))
        column_bits = np.uint64(max(1, int(np.diff(self.starts).max(initial=0)).bit_length()))
        order = np.empty(len(known), np.int64)
        # User, score and place are packed into one integer: a plain sort is many times faster than sorting by three.
        users_a_block = 1 << (64 - 32 - int(column_bits))
        for first in range(0, self.num_users, users_a_block):
            low, high = self.starts[first], self.starts[min(first + users_a_block, self.num_users)]
            rows = slice(*np.searchsorted(known, [low, high]))
            pairs = known[rows]
            users = self.owners[pairs]
            place = (pairs - self.starts[users]).astype(np.uint64)
            high_bits = (users - first).astype(np.uint64) << np.uint64(32) | falling(scores[pairs])
            packed = np.sort(high_bits << column_bits | place)
            place = (packed & ((np.uint64(1) << column_bits) - np.uint64(1))).astype(np.int64)
            order[rows] = self.starts[users] + place  # users stand in the same order before and after
        return order

    def lists(self, order: Numbers, length: int) -> Numbers:
        """The first items of each user.

        Args:
            order: [M] pairs by user, best first.
            length: of a list.

        Returns:
            [U, length] item indices, -1: none.
        """
        users = self.owners[order]
        slots = np.arange(len(order)) - np.searchsorted(users, np.arange(self.num_users))[users]
        first = slots < length
        lists = np.full((self.num_users, length), -1, np.int64)
        lists[users[first], slots[first]] = self.items[order[first]]
        return lists
