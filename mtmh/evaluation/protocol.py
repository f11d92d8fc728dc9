"""The paper's protocol: from users and their triggers to one ranked list a user (sections 2 and 4.1).

For every user: the last triggers of the training history; for every trigger and head ``k_ann`` nearest candidates; each
head's candidates preranked separately to K; the quota merge; the answers of all triggers sorted by score. Where that
leaves a user's list short, the triggers keep more than K, by the rule of serving (`trigger_widths`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices
from mtmh.evaluation.cohort import Cohort
from mtmh.evaluation.pipeline import Pipeline
from mtmh.evaluation.ranked import (
    CHUNK_CANDIDATES,
    SEEN_FLAGS,
    Kept,
    RankedCandidates,
    make_requests,
    score,
    seen_flags,
)
from mtmh.evaluation.shared_preranking import shared_prerank
from mtmh.retrieval.ranking import Candidates, Requests, keeps_order, prerank
from mtmh.retrieval.user_list import trigger_widths

_BLOCK_CANDIDATES = 134_217_728  # of distinct triggers held at a time (1 GiB of items and scores)
_TABLE_CELLS = 16  # of all users and items, a candidate: where there are no more, marking them beats sorting


def rank_users(cohort: Cohort, pipeline: Pipeline, length: int) -> RankedCandidates:
    """Ranks candidates for all users, more of a trigger where lists would stay short.

    A list is short if the merge at the pipeline's alpha or any head alone does not fill it.

    Args:
        cohort: U users.
        pipeline: that finds and ranks.
        length: of a list.
    """
    k, most = pipeline.k, min(length, pipeline.k_ann)
    widths = np.empty(cohort.num_users, np.int64)
    rules = {}
    for user, num_triggers in enumerate((cohort.triggers >= 0).sum(axis=1).tolist()):
        rules[user] = trigger_widths(k, most, max(1, num_triggers))
        widths[user] = next(rules[user])
    groups: list[Kept] = []
    while (widths >= 0).any():
        width = int(widths[widths >= 0].min())
        reaches = _reaches(cohort, pipeline, width)
        reach = int(reaches[widths == width].min())
        users = np.flatnonzero((widths == width) & (reaches == reach))
        kept = _keep(cohort, users, pipeline, width, reach)
        filled = np.ones(len(users), bool)
        if width < most:
            filled, kept = _filled(pipeline, kept, length)
        for user in users[~filled]:
            widths[user] = next(rules[user])
        widths[users[filled]] = -1
        if filled.any():
            groups.append(kept)
    return RankedCandidates(pipeline, cohort, length, [score(cohort, kept, pipeline, length) for kept in groups])


def _reaches(cohort: Cohort, pipeline: Pipeline, width: int) -> npt.NDArray[np.int64]:
    """[U] how many candidates of a trigger are looked at: all where they are ranked anew.

    Where the order of the search stays, the first ``width`` that the user has not seen are all that count; the numbers
    are rounded up, so that few groups of users differ in them.
    """
    if pipeline.shared or not keeps_order(pipeline.preranker):
        return np.full(cohort.num_users, pipeline.k_ann)
    most = width + np.diff(cohort.seen.offsets)
    rounded: npt.NDArray[np.int64] = np.minimum(1 << np.ceil(np.log2(most)).astype(np.int64), pipeline.k_ann)
    return rounded


def _filled(pipeline: Pipeline, kept: Kept, length: int) -> tuple[npt.NDArray[np.bool_], Kept]:
    """[G] whose list the merge fills, and each head alone; what these users' triggers keep."""
    owners, num_users, num_items = kept.requests.users, len(kept.users), pipeline.num_items
    if pipeline.shared:  # what is kept is what a merge of all of it takes
        together = np.concatenate(kept.items, axis=1)
        filled = _num_distinct(owners, together, num_users, num_items) >= length
        return filled, kept.select(filled)
    filled = np.ones(num_users, bool)
    if len(kept.candidates) > 1:
        for items in kept.items:
            filled &= _num_distinct(owners, items, num_users, num_items) >= length
    # Merging costs more than counting, so only those go on whose heads are enough.
    by_merge = kept.select(filled)
    taken = by_merge.merged(kept.width, pipeline.alpha)
    merged = np.concatenate([np.where(mask, items, -1) for mask, items in zip(taken, by_merge.items, strict=True)], 1)
    of_merge = _num_distinct(by_merge.requests.users, merged, len(by_merge.users), num_items) >= length
    filled[filled] = of_merge
    return filled, by_merge.select(of_merge)


def _num_distinct(users: Indices, items: Indices, num_users: int, num_items: int) -> npt.NDArray[np.int64]:
    """[G] distinct items of each user among items [P, C] (-1: none) of ``users`` [P]."""
    if num_users * (num_items + 1) <= _TABLE_CELLS * items.size:
        is_there = np.zeros((num_users, num_items + 1), bool)  # the last column is for none
        is_there[users[:, None], items] = True
        return np.asarray(np.count_nonzero(is_there[:, :-1], axis=1), np.int64)
    keys = np.sort((users[:, None] * num_items + items)[items >= 0])  # np.unique is slower
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    return np.bincount(keys[first] // num_items, minlength=num_users)


def _keep(cohort: Cohort, users: npt.NDArray[np.intp], pipeline: Pipeline, width: int, reach: int) -> Kept:
    """The ``width`` preranked ones of the first ``reach`` candidates of every trigger and head.

    A trigger of several users is searched once.
    """
    asking = cohort.select(users)
    requests = make_requests(asking)
    starts = np.searchsorted(requests.users, np.arange(len(users) + 1))
    kept: dict[str, list[Candidates]] = {head: [] for head in pipeline.searches}
    candidates_a_user = asking.triggers.shape[1] * reach
    users_a_block = max(1, _BLOCK_CANDIDATES // (candidates_a_user * len(pipeline.searches)))
    users_a_chunk = max(1, min(CHUNK_CANDIDATES // candidates_a_user, SEEN_FLAGS // pipeline.num_items))
    for block in range(0, len(users), users_a_block):
        block_end = min(block + users_a_block, len(users))
        distinct = np.unique(requests.triggers[starts[block] : starts[block_end]])
        found = {head: search(distinct, reach, width) for head, search in pipeline.searches.items()}
        for start in range(block, block_end, users_a_chunk):
            end = min(start + users_a_chunk, block_end)
            rows = slice(starts[start], starts[end])
            part = Requests(requests.triggers[rows], requests.users[rows] - start, requests.histories[start:end])
            places = np.searchsorted(distinct, part.triggers)
            candidates = [
                Candidates(head, nearest.items[places], nearest.scores[places]) for head, nearest in found.items()
            ]
            seen = seen_flags(asking, np.arange(start, end), pipeline.num_items)
            for of_head in _prerank(pipeline, part, candidates, width, seen):
                kept[of_head.head].append(of_head)
    joined = [
        Candidates(head, np.concatenate([p.items for p in parts]), np.concatenate([p.scores for p in parts]))
        for head, parts in kept.items()
    ]
    return Kept(users, requests, joined)


def _prerank(
    pipeline: Pipeline,
    requests: Requests,
    candidates: Sequence[Candidates],
    width: int,
    seen: npt.NDArray[np.bool_],
) -> list[Candidates]:
    banned = [seen[requests.users[:, None], of_head.items] for of_head in candidates]
    if pipeline.shared:
        return shared_prerank(pipeline.sorter, requests, candidates, width, banned)
    if keeps_order(pipeline.preranker):
        return [_first(of_head, width, out) for of_head, out in zip(candidates, banned, strict=True)]
    return [
        prerank(pipeline.preranker, requests, of_head, width, out)
        for of_head, out in zip(candidates, banned, strict=True)
    ]


def _first(candidates: Candidates, k: int, banned: npt.NDArray[np.bool_]) -> Candidates:
    """As `prerank` by the order of the search: the first K of each trigger that are not banned."""
    allowed = (candidates.items >= 0) & ~banned
    slots = np.cumsum(allowed, axis=1, dtype=np.int32)
    chosen = allowed & (slots <= k)
    items = np.full((len(allowed), k), -1, candidates.items.dtype)
    scores = np.full((len(allowed), k), -np.inf, np.float32)
    if np.count_nonzero(chosen) == items.size:  # all find enough
        items.ravel()[:], scores.ravel()[:] = candidates.items[chosen], candidates.scores[chosen]
    else:
        rows, columns = np.nonzero(chosen)
        places = slots[rows, columns] - 1
        items[rows, places] = candidates.items[rows, columns]
        scores[rows, places] = candidates.scores[rows, columns]
    return Candidates(candidates.head, items, scores)
