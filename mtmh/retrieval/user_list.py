"""One list for a user: the answers of all triggers pooled under each head, then shared out among the heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Scores
from mtmh.retrieval.merge import quota_merge
from mtmh.retrieval.ranking import USER, Candidates, Ranker, Requests

_NO_RANK = np.iinfo(np.int64).max


@dataclass(frozen=True)
class UserList:
    """N answers, best first by score where nothing else is said.

    Attributes:
        items: [N] item indices.
        scores: [N] float32, comparable over heads and triggers.
        similarities: [N] float32, to the trigger, under that head.
        heads: [N] position among those given of the head that found the item, with the best rank if several did.
        triggers: [N] item indices.
    """

    items: npt.NDArray[np.int64]
    scores: Scores
    similarities: Scores
    heads: npt.NDArray[np.int8]
    triggers: npt.NDArray[np.int64]


def user_list(
    requests: Requests,
    kept: Sequence[Candidates],
    ranker: Ranker,
    quotas: Sequence[int],
    sorter: Ranker,
) -> UserList:
    """Pools the candidates of one user's triggers under each head, and merges the pools by quota.

    Args:
        requests: the T triggers of one user.
        kept: candidates [T, C] of each head; the user's own ones, if there are any, last.
        ranker: by whose scores a pool is in order.
        quotas: answers of each head.
        sorter: scores what is merged.

    Returns:
        As many answers as the quotas sum to, or as there are distinct candidates.
    """
    length = sum(quotas)

    def pool(candidates: Candidates) -> npt.NDArray[np.intp]:
        return _pool(candidates.items, ranker.score(requests, candidates), length)

    whole = [head for head, quota in enumerate(quotas) if quota == length]
    if len(whole) == 1 and len(places := pool(kept[whole[0]])) == length:  # nothing to merge
        items, heads = kept[whole[0]].items.ravel()[places].astype(np.int64), np.full(length, whole[0], np.int8)
    else:
        pools = [pool(candidates) for candidates in kept]
        lists = [candidates.items.ravel()[places][None, :] for candidates, places in zip(kept, pools, strict=True)]
        merged = quota_merge(lists, quotas)
        items, heads, ranks = (values[0][merged.items[0] >= 0] for values in (merged.items, merged.heads, merged.ranks))
        places = np.empty(len(items), np.intp)
        for head, own in enumerate(pools):
            places[heads == head] = own[ranks[heads == head]]
    if kept and kept[-1].head == USER:
        heads, places = first_found(items, heads, places, kept)
    return by_score(scored(requests, kept, items, heads, places, sorter))


def scored(
    requests: Requests,
    kept: Sequence[Candidates],
    items: npt.NDArray[np.int64],
    heads: npt.NDArray[np.int8],
    places: npt.NDArray[np.intp],
    sorter: Ranker,
) -> UserList:
    """Answers with what the sorter says of them, in the order in which they come.

    Args:
        requests: the T triggers of one user.
        kept: candidates [T, C] of each head.
        items: [N] answers.
        heads: [N] that brought them.
        places: [N] in the flattened candidates of that head.
        sorter: scores them.
    """
    scores, similarities = np.empty(len(items), np.float32), np.empty(len(items), np.float32)
    triggers = np.empty(len(items), np.int64)
    for head in np.unique(heads).tolist():
        candidates, brought = kept[head], heads == head
        rows = places[brought] // candidates.items.shape[1]
        triggers[brought] = requests.triggers[rows]
        similarities[brought] = candidates.scores.ravel()[places[brought]]
        # Scored as one candidate of its trigger each.
        repeated = Requests(requests.triggers[rows], requests.users[rows], requests.histories)
        single = Candidates(candidates.head, items[brought][:, None], similarities[brought][:, None])
        scores[brought] = sorter.score(repeated, single)[:, 0]
    return UserList(items, scores, similarities, heads, triggers)


def by_score(found: UserList) -> UserList:
    """The list with the best score first."""
    order = np.argsort(-found.scores, kind="stable")
    return UserList(
        found.items[order], found.scores[order], found.similarities[order], found.heads[order], found.triggers[order]
    )


def first_found(
    items: npt.NDArray[np.int64], heads: npt.NDArray[np.int8], places: npt.NDArray[np.intp], kept: Sequence[Candidates]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.intp]]:
    """Puts heads in the place of the user's own candidates, where they found them too: a person sees why.

    Args:
        items: [N] answers.
        heads: [N] that brought them.
        places: [N] in the flattened candidates of that head.
        kept: candidates of the heads, best first.

    Returns:
        heads and places, where one of the other heads has the item: of the best rank among these.
    """
    if not len(items):
        return heads, places
    ranks = np.where(heads == len(kept) - 1, _NO_RANK, -1)
    order = np.argsort(items)
    for head, candidates in enumerate(kept[:-1]):
        # Of each answer the first place among all first candidates, then all second ones.
        by_rank = candidates.items.T.ravel()
        at = order[np.minimum(np.searchsorted(items, by_rank, sorter=order), len(items) - 1)]
        hits = np.flatnonzero(items[at] == by_rank)
        first = np.full(len(items), _NO_RANK)
        np.minimum.at(first, at[hits], hits)
        rank, row = np.divmod(first, len(candidates.items))
        better = (first < _NO_RANK) & (rank < ranks)
        heads, ranks = np.where(better, head, heads).astype(np.int8), np.where(better, rank, ranks)
        places = np.where(better, row * candidates.items.shape[1] + rank, places)
    return heads, places


def trigger_widths(k: int, length: int, num_triggers: int) -> Iterator[int]:
    """Candidates that each trigger of a user keeps so that a list fills: the next one where the list came out short.

    Args:
        k: kept at least.
        length: of the list.
        num_triggers: of the user, at least 1.

    Yields:
        First the smallest of k, 2k, 4k, ... with which triggers that share no answers fill the list, then its doubles;
        at most ``length``, unless ``k`` is more.

    Example:
        >>> list(trigger_widths(30, 500, 50)), list(trigger_widths(30, 500, 2))
        ([30, 60, 120, 240, 480, 500], [480, 500])
    """
    width = k
    while width * num_triggers < length:
        width *= 2
    yield (width := max(k, min(width, length)))
    while width < length:
        yield (width := min(2 * width, length))


def distinct_latest_first(history: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The distinct known items of a history whose latest is the last; the latest first, as `Requests` has them."""
    latest_first = history[::-1]
    return latest_first[first_places(latest_first, np.arange(len(history)))]


def first_places(items: npt.NDArray[np.integer], order: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Of places in an order those at which an item comes for the first time; places without an item are left out."""
    order = order[items[order] >= 0]
    _, first = np.unique(items[order], return_index=True)
    places: npt.NDArray[np.intp] = order[np.sort(first)]
    return places


def _pool(items: npt.NDArray[np.integer], ranking: Scores, length: int) -> npt.NDArray[np.intp]:
    """Places (in the flattened [T, C]) of the ``length`` best distinct items, the best place of each, best first."""
    return first_places(items.ravel(), np.argsort(-ranking.ravel(), kind="stable"))[:length]
