"""One ranking of all heads' candidates, which the papers argue against: a row of the evaluation, for comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices
from mtmh.retrieval.merge import Merged
from mtmh.retrieval.ranking import Candidates, Ranker, Requests


def shared_prerank(
    sorter: Ranker,
    requests: Requests,
    found: Sequence[Candidates],
    k: int,
    banned: Sequence[npt.NDArray[np.bool_]] | None = None,
) -> list[Candidates]:
    """Keeps the K best candidates of each trigger out of those of all heads together (`shared_merge`).

    K distinct items remain in all, so that any merge of what remains holds these K.

    Args:
        sorter: scores candidates of different heads so that they compare.
        requests: the T triggers and their users.
        found: [T, C_h] of each head.
        k: candidates kept.
        banned: [T, C_h] of each head, candidates that must not be kept.

    Returns:
        [T, K] of each head, its own best first; scores are still similarities.
    """
    items = [of_head.items for of_head in found]
    if banned is not None:
        items = [np.where(out, -1, lists) for lists, out in zip(items, banned, strict=True)]
    merged = shared_merge(items, [sorter.score(requests, of_head) for of_head in found], k)
    kept = []
    for head, of_head in enumerate(found):
        own = merged.heads == head
        order = np.argsort(~own, axis=1, kind="stable")  # the kept ones first, in the order of the ranking
        filled = np.take_along_axis(own, order, axis=1)
        columns = np.where(filled, np.take_along_axis(merged.ranks, order, axis=1), 0)
        scores = np.take_along_axis(of_head.scores, columns, axis=1)
        ranked = np.take_along_axis(merged.items, order, axis=1)
        kept.append(
            Candidates(of_head.head, np.where(filled, ranked, -1), np.where(filled, scores, np.float32(-np.inf)))
        )
    return kept


def shared_merge(candidates: Sequence[Indices], scores: Sequence[npt.NDArray[np.float32]], k: int) -> Merged:
    """One ranking of all heads' candidates, in place of a cut and a quota for each head.

    The papers argue against it: a score that favours engagement pushes out what the relevance head found.

    Args:
        candidates: one array a head, [T, C_h] item indices, -1: no candidate.
        scores: of the candidates, comparable over heads; -inf: must not be taken.
        k: answers a trigger.

    Returns:
        the K best, each item once, best first; an item that several heads brought counts for the one that scored it
        best, the earlier head in a tie.

    Example:
        >>> items, scores = [np.array([[7, 8]]), np.array([[8, 5]])], [np.array([[0.9, 0.3]]), np.array([[0.4, 0.5]])]
        >>> merged = shared_merge(items, [found.astype(np.float32) for found in scores], k=3)
        >>> merged.items.tolist(), merged.heads.tolist(), merged.ranks.tolist()
        ([[7, 5, 8]], [[0, 1, 1]], [[0, 1, 0]])
    """
    widths = [lists.shape[1] for lists in candidates]
    items = np.concatenate(candidates, axis=1).astype(np.int64)
    heads = np.repeat(np.arange(len(candidates), dtype=np.int8), widths)
    ranks = np.concatenate([np.arange(width, dtype=np.int32) for width in widths])
    merged = [np.full((len(items), k), -1, dtype) for dtype in (np.int64, np.int8, np.int32)]
    by_score = np.where(items >= 0, -np.concatenate(scores, axis=1), np.float32(np.inf))
    order = np.argsort(by_score, axis=1, kind="stable")
    ranked = np.take_along_axis(items, order, axis=1)
    # Stably by item: of equal items the first is the best one.
    by_item = np.argsort(ranked, axis=1, kind="stable")
    in_order = np.take_along_axis(ranked, by_item, axis=1)
    first = np.ones(items.shape, dtype=bool)
    first[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    chosen = np.empty_like(first)
    np.put_along_axis(chosen, by_item, first, axis=1)
    chosen &= np.isfinite(np.take_along_axis(by_score, order, axis=1))
    slots = np.cumsum(chosen, axis=1) - 1
    rows, columns = np.nonzero(chosen & (slots < k))
    places = order[rows, columns]
    for out, values in zip(merged, (items[rows, places], heads[places], ranks[places]), strict=True):
        out[rows, slots[rows, columns]] = values
    return Merged(*merged)
