"""Quota merge: each trigger's answers are shared out among the heads (paper, section 3.5, candidate merging module).

The rule, for K answers and one quota a head:

1. Heads take turns in their given order, the engagement head first. A head goes down its own list and takes items until
   its quota is full; an item that an earlier head took is skipped, so it counts for the head that took it first.
2. Where lists were too short to fill the quotas, the heads go on in the same order until K items are taken.

So K items come out whenever the lists hold K distinct ones, and nothing is in the answer twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices
from mtmh.errors import RequestError, meant

Overlaps = list[list[npt.NDArray[np.int32]]]

_COMPARISONS = 16_777_216  # of item ids at a time: bounds the memory of one block of triggers


@dataclass(frozen=True)
class Merged:
    """The answers of T triggers, grouped by head, each head's in its own order; unused slots are at the end.

    Attributes:
        items: [T, K] int64 item indices, -1: no item.
        heads: [T, K] int8, position of the head that brought the item, -1: no item.
        ranks: [T, K] int32, the item's place in that head's list, -1: no item.
    """

    items: npt.NDArray[np.int64]
    heads: npt.NDArray[np.int8]
    ranks: npt.NDArray[np.int32]

    def take(self, values: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Values of the merged items out of one [T, K_h] array a head; -inf where there is no item. Returns [T, K]."""
        starts = np.cumsum([0, *(array.shape[1] for array in values[:-1])])
        present = self.items >= 0
        columns = np.where(present, starts[self.heads] + self.ranks, 0)
        taken = np.take_along_axis(np.concatenate(values, axis=1), columns, axis=1)
        return np.where(present, taken, np.float32(-np.inf))


def head_shares(alpha: float, num_heads: int) -> list[float]:
    """Shares of the heads under ``alpha`` percent for the first (engagement) head; the others divide the rest equally.

    Raises:
        ValueError: ``alpha`` is not within 0 to 100.
    """
    if not 0.0 <= alpha <= 100.0:
        raise RequestError(f"alpha is {alpha}, expected a percentage from 0 to 100")
    if num_heads == 1:
        return [1.0]
    return [alpha / 100.0] + [(1.0 - alpha / 100.0) / (num_heads - 1)] * (num_heads - 1)


def named_shares(shares: Mapping[str, float], heads: Sequence[str]) -> list[float]:
    """Shares in the order of the heads; a head that is not named has none.

    Raises:
        ValueError: a head that is not there.
    """
    unknown = sorted(set(shares) - set(heads))
    if unknown:
        raise RequestError(
            f"no head {', '.join(unknown)}; the heads are {', '.join(heads)}{meant(unknown[0], heads)}", "shares"
        )
    return [shares.get(head, 0.0) for head in heads]


def head_quotas(shares: Sequence[float], k: int) -> list[int]:
    """Divides ``k`` slots by largest remainder; a tie goes to the earlier head (alpha = 50, k = 5: 3 and 2).

    Raises:
        ValueError: shares are negative or do not sum to 1.
    """
    if not (min(shares) >= 0.0 and abs(sum(shares) - 1.0) <= 1e-6):  # written so that NaN is refused
        raise RequestError(f"head shares {list(shares)}: expected non-negative numbers that sum to 1")
    # Rounded, so that 0.29 * 100 counts as 29 and not as 28.999999999999996.
    exact = [round(share * k, 6) for share in shares]
    quotas = [int(slots) for slots in exact]
    by_remainder = sorted(range(len(shares)), key=lambda head: quotas[head] - exact[head])  # stable: ties keep order
    for head in by_remainder[: k - sum(quotas)]:
        quotas[head] += 1
    assert sum(quotas) == k
    return quotas


def quota_merge(candidates: Sequence[Indices], quotas: Sequence[int]) -> Merged:
    """Merges the heads' lists of all triggers at once.

    Args:
        candidates: one array a head, [T, K_h] item indices, best first, distinct within a row; -1 marks a missing
            candidate and may stand anywhere.
        quotas: slots of each head; their sum is K.

    Returns:
        K answers a trigger.

    Raises:
        ValueError: the arrays do not belong together.

    Example:
        >>> merged = quota_merge([np.array([[7, 8, 9]]), np.array([[8, 7, 5]])], quotas=[2, 1])
        >>> merged.items.tolist(), merged.heads.tolist()
        ([[7, 8, 5]], [[0, 0, 1]])
    """
    if len(candidates) != len(quotas) or len({len(lists) for lists in candidates}) != 1:
        raise ValueError(
            f"{len(quotas)} quotas for candidates of shapes {[lists.shape for lists in candidates]}:"
            " expected one [T, K_h] array a head with the same number of triggers"
        )
    num_triggers, k = len(candidates[0]), sum(quotas)
    widest = max(lists.shape[1] for lists in candidates)
    block = max(1, _COMPARISONS // max(1, widest * widest * len(candidates)))
    parts = [
        _merge_block([lists[start : start + block] for lists in candidates], quotas, k)
        for start in range(0, max(num_triggers, 1), block)
    ]
    return Merged(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def _merge_block(
    candidates: Sequence[Indices], quotas: Sequence[int], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    if not any(lists.shape[1] for lists in candidates):
        nothing = np.full((len(candidates[0]), k), -1)
        return nothing, nothing.astype(np.int8), nothing.astype(np.int32)
    taken = taken_by_quota(candidates, quotas)
    items = np.concatenate(candidates, axis=1).astype(np.int64)
    heads = np.repeat(np.arange(len(candidates), dtype=np.int8), [lists.shape[1] for lists in candidates])
    ranks = np.concatenate([np.arange(lists.shape[1], dtype=np.int32) for lists in candidates])
    chosen = np.concatenate(taken, axis=1)
    rows, columns = np.nonzero(chosen)
    slots = (np.cumsum(chosen, axis=1) - 1)[rows, columns]
    column_of = np.full((len(chosen), k), -1)
    column_of[rows, slots] = columns
    present = column_of >= 0
    return (
        np.where(present, np.take_along_axis(items, column_of, axis=1), -1),
        np.where(present, heads[column_of], np.int8(-1)),
        np.where(present, ranks[column_of], np.int32(-1)),
    )


def taken_by_quota(
    candidates: Sequence[Indices], quotas: Sequence[int], overlaps: Overlaps | None = None
) -> list[npt.NDArray[np.bool_]]:
    """The candidates that a merge takes, by the rule above.

    Args:
        candidates: as for `quota_merge`.
        quotas: as for `quota_merge`.
        overlaps: of these candidates (`find_overlaps`), for who merges them more than once.

    Returns:
        one mask [T, K_h] a head.
    """
    taken = [np.zeros(lists.shape, dtype=bool) for lists in candidates]
    for head, quota in enumerate(quotas):
        taken[head] = _first(_free(candidates, taken, head, overlaps), np.full(len(candidates[head]), quota))
    missing = sum(quotas) - np.sum([mask.sum(axis=1) for mask in taken], axis=0)
    short = np.flatnonzero(missing)
    if not len(short):
        return taken
    lists, filled = [array[short] for array in candidates], [mask[short] for mask in taken]
    of_short = None if overlaps is None else [[places[short] for places in others] for others in overlaps]
    for head, mask in enumerate(filled):
        missing = sum(quotas) - np.sum([other.sum(axis=1) for other in filled], axis=0)
        mask |= _first(_free(lists, filled, head, of_short), missing)
        taken[head][short] = mask
    return taken


def find_overlaps(candidates: Sequence[Indices]) -> Overlaps:
    """The places of each head's candidates in the lists of the other heads.

    Args:
        candidates: as for `quota_merge`.

    Returns:
        by head and other head, [T, K_h] columns of the other head's list, its width where the item is not there.
    """
    widths = [lists.shape[1] for lists in candidates]
    places: Overlaps = [[np.full(lists.shape, width, np.int32) for width in widths] for lists in candidates]
    for first, second in combinations(range(len(candidates)), 2):
        width = widths[first] + widths[second]
        bits, block = width.bit_length(), max(1, _COMPARISONS // max(1, width))
        for start in range(0, len(candidates[first]), block):
            part = slice(start, start + block)
            # Item and column in one number; columns of the second list come after those of the first.
            both = np.concatenate([candidates[first][part], candidates[second][part]], axis=1).astype(np.int64)
            packed = np.sort(both << bits | np.arange(width), axis=1)
            items, columns = packed >> bits, (1 << bits) - 1
            rows, at = np.nonzero((items[:, 1:] == items[:, :-1]) & (items[:, 1:] >= 0))
            own, other = packed[rows, at] & columns, (packed[rows, at + 1] & columns) - widths[first]
            places[first][second][part][rows, own] = other
            places[second][first][part][rows, other] = own
    return places


def _free(
    candidates: Sequence[Indices], taken: Sequence[npt.NDArray[np.bool_]], head: int, overlaps: Overlaps | None
) -> npt.NDArray[np.bool_]:
    """Mask of the candidates of ``head`` that are there and not in the answer yet."""
    free = (candidates[head] >= 0) & ~taken[head]
    for other, mask in enumerate(taken):
        if other != head and mask.any():
            if overlaps is not None:
                free &= ~np.take_along_axis(np.pad(mask, ((0, 0), (0, 1))), overlaps[head][other], axis=1)
            else:
                others = np.where(mask, candidates[other], -1)
                free &= ~(candidates[head][:, :, None] == others[:, None, :]).any(axis=2)
    return free


def _first(free: npt.NDArray[np.bool_], count: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """The first ``count[t]`` True entries of each row."""
    return free & (np.cumsum(free, axis=1, dtype=np.int32) <= count[:, None])
