"""The paper's protocol: from users and their triggers to one ranked list a user (sections 2 and 4.1).

For every user: the last triggers of the training history; for every trigger and head ``k_ann`` nearest candidates; each
head's candidates preranked separately to K; the quota merge; the answers of all triggers sorted by score. Where that
leaves a user's list short, the triggers keep more than K, by the rule of serving (`trigger_widths`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices, Scores, falling
from mtmh.data.histories import last_distinct
from mtmh.evaluation.cohort import Cohort
from mtmh.evaluation.shared_preranking import shared_merge, shared_prerank
from mtmh.retrieval.merge import Merged, head_quotas, head_shares, quota_merge
from mtmh.retrieval.ranking import Candidates, Ranker, Requests, UserListSource, keeps_order, prerank
from mtmh.retrieval.user_list import trigger_widths

# [T] triggers, how many candidates are looked at, and how many each needs at least -> as many of each, best first, and
# more where there may be gaps among them; the trigger is not among its candidates.
Search = Callable[[Indices, int, int], Candidates]

_BLOCK_CANDIDATES = 134_217_728  # of distinct triggers held at a time (1 GiB of items and scores)
_CHUNK_CANDIDATES = 2_097_152  # preranked at a time
_LONGEST_HISTORY = 1000  # items of a user that rankers see
_SEEN_FLAGS = 67_108_864  # users x catalogue at a time (64 MiB)


@dataclass(frozen=True)
class Answers:
    """K answers of every <user, trigger>.

    Attributes:
        users: [P] row of the user in the cohort.
        triggers: [P] item indices.
        items: [P, K] item indices, -1: none.
    """

    users: Indices
    triggers: Indices
    items: Indices


@dataclass(frozen=True)
class Pipeline:
    """The way candidates are found and ranked, for a model or a yardstick.

    Attributes:
        searches: by head, the engagement head first.
        preranker: keeps the best of each head.
        sorter: scores what is kept, so that heads and triggers compare.
        num_items: size of the catalogue.
        k_ann: width of the searches' answers.
        k: candidates kept a trigger (K).
        alpha: percent of the answers from the first head.
        shared: keep the K best of all heads together, by the sorter's score.
        user_share: percent of a user's list for which the sorter proposes candidates of its own, if it can.
    """

    searches: Mapping[str, Search]
    preranker: Ranker
    sorter: Ranker
    num_items: int
    k_ann: int
    k: int
    alpha: float = 100.0
    shared: bool = False
    user_share: float = 0.0

    @property
    def heads(self) -> list[str]:
        """Names of the heads."""
        return list(self.searches)


@dataclass(frozen=True)
class Ranked:
    """Users whose triggers keep equally many candidates, and these.

    Attributes:
        users: [G] rows of the cohort.
        requests: the P triggers; their users are numbered from 0 to G - 1.
        kept: by head, [P, width], best first.
        scores: by head, [P, width], comparable over heads and triggers.
        own: [G, N] candidates of the users themselves, and their scores; None: there are none.
        merged: the last merge of what is kept, by its length and alpha: answers, lists and triggers go by the same.
    """

    users: npt.NDArray[np.intp]
    requests: Requests
    kept: list[Candidates]
    scores: list[Scores]
    own: tuple[Indices, Scores] | None = None
    merged: dict[tuple[int, float], Merged] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Candidates kept a trigger and head."""
        return int(self.kept[0].items.shape[1])

    def select(self, chosen: npt.NDArray[np.bool_]) -> Ranked:
        """Some of the users; ``chosen`` is [G]."""
        rows = chosen[self.requests.users]
        place = np.cumsum(chosen) - 1
        asking = self.requests
        return Ranked(
            self.users[chosen],
            Requests(asking.triggers[rows], place[asking.users[rows]], asking.histories[chosen]),
            [Candidates(head.head, head.items[rows], head.scores[rows]) for head in self.kept],
            [scores[rows] for scores in self.scores],
            None if self.own is None else (self.own[0][chosen], self.own[1][chosen]),
        )


@dataclass(frozen=True)
class RankedCandidates:
    """The candidates of all users, wide enough to fill their lists; every alpha is merged out of them.

    Attributes:
        pipeline: that found them.
        num_users: U.
        length: of a list.
        groups: every user is in one of them.
    """

    pipeline: Pipeline
    num_users: int
    length: int
    groups: list[Ranked]

    def sorted_by(self, sorter: Ranker) -> RankedCandidates:
        """The same candidates under other scores."""
        groups = [
            replace(part, scores=[sorter.score(part.requests, of_head) for of_head in part.kept], own=None)
            for part in self.groups
        ]
        return replace(self, groups=groups)

    def answers(self, alpha: float | None = None, head: int | None = None) -> Answers:
        """K answers a trigger: of the merge at ``alpha`` (None: the pipeline's), or of one head by its place alone."""
        alpha = self.pipeline.alpha if alpha is None else alpha
        items = [_merge(self.pipeline, part, self.pipeline.k, alpha, head)[0] for part in self.groups]
        users = [part.users[part.requests.users] for part in self.groups]
        triggers = [part.requests.triggers for part in self.groups]
        return Answers(np.concatenate(users), np.concatenate(triggers), np.concatenate(items))

    def lists(
        self,
        alpha: float | None = None,
        head: int | None = None,
        *,
        by_own_score: bool = False,
        heads_alone: bool = False,
    ) -> npt.NDArray[np.int64]:
        """The users' lists.

        Args:
            alpha: as for ``answers``.
            head: as for ``answers``.
            by_own_score: sort the head's answers by its own similarity, not by the sorter.
            heads_alone: leave out candidates of the users themselves, as for a request that names alpha.

        Returns:
            [U, length] item indices, best first, -1: none.
        """
        alpha = self.pipeline.alpha if alpha is None else alpha
        lists = np.full((self.num_users, self.length), -1, np.int64)
        for part in self.groups:
            shown = replace(part, own=None) if heads_alone else part
            lists[part.users] = _lists(self.pipeline, shown, self.length, alpha, head, by_own_score)
        return lists

    def brought_by(
        self, lists: npt.NDArray[np.int64], alpha: float | None = None, head: int | None = None
    ) -> npt.NDArray[np.int64]:
        """The triggers that brought the items of lists: of several the one by which the item has its best score.

        Args:
            lists: of ``lists``.
            alpha: as for ``lists``.
            head: as for ``lists``.

        Returns:
            [U, length] item indices, -1: no trigger brought it.
        """
        alpha = self.pipeline.alpha if alpha is None else alpha
        found = np.full(lists.shape, -1, np.int64)
        for part in self.groups:
            items, scores = _scored(self.pipeline, part, alpha, head)
            found[part.users] = _best_triggers(part.requests, items, scores, lists[part.users])
        return found


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
    groups: list[Ranked] = []
    while (widths >= 0).any():
        width = int(widths[widths >= 0].min())
        reaches = _reaches(cohort, pipeline, width)
        reach = int(reaches[widths == width].min())
        users = np.flatnonzero((widths == width) & (reaches == reach))
        part = _rank(cohort.select(users), users, pipeline, width, reach, length)
        short = _falling_short(pipeline, part, length)
        for user in users[short]:
            widths[user] = next(rules[user], -1)
        settled = ~short | (widths[users] < 0)
        widths[users[~short]] = -1
        if settled.any():
            groups.append(part if settled.all() else part.select(settled))
    return RankedCandidates(pipeline, cohort.num_users, length, groups)


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


def user_lists(users: Indices, items: Indices, scores: Scores, num_users: int, length: int) -> npt.NDArray[np.int64]:
    """Sorts each user's answers by score; an item that several triggers brought counts once, with its best score.

    Args:
        users: [P] user of each trigger, from 0 to U - 1.
        items: [P, K] answers of the triggers, -1: none.
        scores: [P, K] comparable within a user.
        num_users: U.
        length: of the lists.

    Returns:
        [U, length] item indices, best first, ties to the lower item index, -1: none.
    """
    lists = np.full((num_users, length), -1, np.int64)
    item_bits = np.uint64(max(1, int(items.max(initial=0)).bit_length()))
    # User, score and item are packed into one integer: a plain sort is many times faster than sorting by three keys.
    users_a_block = 1 << (64 - 32 - int(item_bits))
    for start in range(0, num_users, users_a_block):
        inside = (users >= start) & (users < start + users_a_block)
        rows, columns = np.nonzero((items >= 0) & np.isfinite(scores) & inside[:, None])
        user, item = (users[rows] - start).astype(np.uint64), items[rows, columns].astype(np.uint64)
        by_item = np.sort((user << item_bits | item) << np.uint64(32) | falling(scores[rows, columns]))
        best = np.ones(len(by_item), dtype=bool)
        best[1:] = by_item[1:] >> np.uint64(32) != by_item[:-1] >> np.uint64(32)
        by_item = by_item[best]
        pair, score = by_item >> np.uint64(32), by_item & np.uint64(0xFFFFFFFF)
        item_mask = (np.uint64(1) << item_bits) - np.uint64(1)
        by_score = np.sort(((pair >> item_bits) << np.uint64(32) | score) << item_bits | pair & item_mask)
        owner = (by_score >> (item_bits + np.uint64(32))).astype(np.intp)
        slot = np.arange(len(owner)) - np.searchsorted(owner, owner)
        first = slot < length
        lists[start + owner[first], slot[first]] = (by_score & item_mask)[first]
    return lists


def _falling_short(pipeline: Pipeline, part: Ranked, length: int) -> npt.NDArray[np.bool_]:
    """[G] whose list the merge or a head alone does not fill."""
    alone = range(len(pipeline.searches)) if len(pipeline.searches) > 1 and not pipeline.shared else ()
    short = np.zeros(len(part.users), dtype=bool)
    for head in (None, *alone):
        items, _ = _merge(pipeline, part, part.width, pipeline.alpha, head)
        keys = np.sort((part.requests.users[:, None] * pipeline.num_items + items)[items >= 0])  # np.unique is slower
        first = np.ones(len(keys), dtype=bool)
        first[1:] = keys[1:] != keys[:-1]
        short |= np.bincount(keys[first] // pipeline.num_items, minlength=len(part.users)) < length
    return short


def _merge(pipeline: Pipeline, part: Ranked, k: int, alpha: float, head: int | None) -> tuple[Indices, Merged | None]:
    """K items of each trigger [P, K], and where they come from: None if from one head."""
    if head is not None:
        return part.kept[head].items[:, :k], None
    if pipeline.shared:
        merged = shared_merge([of_head.items for of_head in part.kept], part.scores, k)
    elif (k, alpha) in part.merged:
        merged = part.merged[k, alpha]
    else:
        items = [of_head.items[:, :k] for of_head in part.kept]
        merged = quota_merge(items, head_quotas(head_shares(alpha, len(items)), k))
        part.merged.clear()
        part.merged[k, alpha] = merged
    return merged.items, merged


def _lists(
    pipeline: Pipeline, part: Ranked, length: int, alpha: float, head: int | None, by_own_score: bool
) -> npt.NDArray[np.int64]:
    items, scores = _scored(pipeline, part, alpha, head, by_own_score)
    users = part.requests.users
    if head is None and part.own is not None:  # beside the answers of all triggers
        width = max(items.shape[1], part.own[0].shape[1])
        items = np.concatenate([_wide(items, width, -1), _wide(part.own[0], width, -1)])
        scores = np.concatenate([_wide(scores, width, -np.inf), _wide(part.own[1], width, -np.inf)])
        users = np.concatenate([users, np.arange(len(part.users))])
    return user_lists(users, items, scores, len(part.users), length)


def _scored(
    pipeline: Pipeline, part: Ranked, alpha: float, head: int | None, by_own_score: bool = False
) -> tuple[Indices, Scores]:
    """All answers of the triggers [P, width], of the merge or of one head, and their scores."""
    items, merged = _merge(pipeline, part, part.width, alpha, head)
    if merged is not None:
        return items, merged.take(part.scores)
    assert head is not None
    return items, part.kept[head].scores if by_own_score else part.scores[head]


def _best_triggers(
    requests: Requests, items: Indices, scores: Scores, lists: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """[G, length] the trigger of the best answer that is the item, the first of equals, -1: there is none."""
    found = np.full(lists.shape, -1, np.int64)
    num_items = int(max(items.max(initial=0), lists.max(initial=0))) + 1
    first_rows = np.searchsorted(requests.users, np.arange(len(lists) + 1))
    row_bits = np.uint64(max(1, int(np.diff(first_rows).max(initial=0)).bit_length()))
    users_a_block = max(1, min(_SEEN_FLAGS // num_items, (1 << (32 - int(row_bits))) // max(1, lists.shape[1])))
    for start in range(0, len(lists), users_a_block):
        own = lists[start : start + users_a_block]
        slots = np.full((len(own), num_items + 1), -1, np.int32)
        users, columns = np.nonzero(own >= 0)
        slots[users, own[users, columns]] = users * own.shape[1] + columns
        rows = slice(first_rows[start], first_rows[start + len(own)])
        asking = requests.users[rows]
        slot = slots[asking[:, None] - start, items[rows]]  # the last column is for none
        row, column = np.nonzero(slot >= 0)
        within = (np.arange(len(asking)) - np.searchsorted(asking, asking)).astype(np.uint64)
        place = slot[row, column].astype(np.uint64) << np.uint64(32) | falling(scores[rows][row, column])
        packed = np.sort(place << row_bits | within[row])
        place = (packed >> (np.uint64(32) + row_bits)).astype(np.intp)
        best = np.flatnonzero(np.diff(place, prepend=-1))
        within_best = (packed[best] & ((np.uint64(1) << row_bits) - np.uint64(1))).astype(np.intp)
        user = start + place[best] // own.shape[1]
        found[user, place[best] % own.shape[1]] = requests.triggers[first_rows[user] + within_best]
    return found


def _wide(values: npt.NDArray[Any], width: int, filling: float) -> npt.NDArray[Any]:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=filling)


def _rank(
    cohort: Cohort, users: npt.NDArray[np.intp], pipeline: Pipeline, width: int, reach: int, length: int
) -> Ranked:
    """The ``width`` preranked ones of the first ``reach`` candidates of every trigger and head.

    A trigger of several users is searched once.
    """
    kept: dict[str, list[Candidates]] = {head: [] for head in pipeline.searches}
    scores: dict[str, list[Scores]] = {head: [] for head in pipeline.searches}
    own: list[tuple[Indices, Scores]] = []
    num_own = round(length * pipeline.user_share / 100.0)
    candidates_a_user = cohort.triggers.shape[1] * reach
    users_a_block = max(1, _BLOCK_CANDIDATES // (candidates_a_user * len(pipeline.searches)))
    users_a_chunk = max(1, min(_CHUNK_CANDIDATES // candidates_a_user, _SEEN_FLAGS // pipeline.num_items))
    for block in range(0, cohort.num_users, users_a_block):
        block_end = min(block + users_a_block, cohort.num_users)
        in_block = cohort.triggers[block:block_end]
        distinct = np.unique(in_block[in_block >= 0])
        found = {head: search(distinct, reach, width) for head, search in pipeline.searches.items()}
        for start in range(block, block_end, users_a_chunk):
            end = min(start + users_a_chunk, block_end)
            requests = _requests(cohort, start, end)
            places = np.searchsorted(distinct, requests.triggers)
            candidates = [
                Candidates(head, nearest.items[places], nearest.scores[places]) for head, nearest in found.items()
            ]
            seen = _seen_flags(cohort, start, end, pipeline.num_items)
            best = _prerank(pipeline, requests, candidates, width, seen)
            # First what judges all candidates of a user at once; a sorter that remembers knows them then.
            if num_own and not pipeline.shared and isinstance(pipeline.sorter, UserListSource):
                own.append(_own(pipeline.sorter, requests, best, num_own, seen))
            for of_head in best:
                kept[of_head.head].append(of_head)
                scores[of_head.head].append(pipeline.sorter.score(requests, of_head))
    joined = [
        Candidates(head, np.concatenate([p.items for p in parts]), np.concatenate([p.scores for p in parts]))
        for head, parts in kept.items()
    ]
    return Ranked(
        users,
        _requests(cohort, 0, cohort.num_users),
        joined,
        [np.concatenate(parts) for parts in scores.values()],
        (np.concatenate([items for items, _ in own]), np.concatenate([own_scores for _, own_scores in own]))
        if own
        else None,
    )


def _own(
    source: UserListSource, requests: Requests, best: Sequence[Candidates], k: int, seen: npt.NDArray[np.bool_]
) -> tuple[Indices, Scores]:
    """The ``k`` best candidates of each user, out of what the triggers kept and what the source adds."""
    brought = np.concatenate([of_head.items for of_head in best], axis=1)
    row = np.arange(len(requests.users)) - np.searchsorted(requests.users, requests.users)
    found = np.full((len(requests.histories), int(row.max(initial=0)) + 1, brought.shape[1]), -1, np.int64)
    found[requests.users, row] = brought
    users = np.arange(len(found))[:, None]
    return source.best_of_users(requests.histories, found.reshape(len(found), -1), k, lambda items: ~seen[users, items])


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
    return [
        prerank(pipeline.preranker, requests, of_head, width, out)
        for of_head, out in zip(candidates, banned, strict=True)
    ]


def _requests(cohort: Cohort, start: int, end: int) -> Requests:
    """The <user, trigger> pairs of some users, with the whole history of each, as service has them."""
    triggers = cohort.triggers[start:end]
    users, places = np.nonzero(triggers >= 0)
    histories = last_distinct(cohort.histories.users(start, end), _LONGEST_HISTORY)
    return Requests(triggers[users, places], users, histories[:, : max(1, int((histories >= 0).sum(axis=1).max()))])


def _seen_flags(cohort: Cohort, start: int, end: int, num_items: int) -> npt.NDArray[np.bool_]:
    """[users, num_items + 1] whether the user has seen the item; the last column answers for item -1."""
    seen = cohort.seen.users(start, end)
    flags = np.zeros((end - start, num_items + 1), dtype=bool)
    flags[np.repeat(np.arange(end - start), np.diff(seen.offsets)), seen.items] = True
    return flags
