"""The paper's protocol: from users and their triggers to one ranked list a user (sections 2 and 4.1).

For every user: the last triggers of the training history; for every trigger and head ``k_ann`` nearest candidates; each
head's candidates preranked separately to K; the quota merge; the answers of all triggers sorted by score. What a
retriever has to offer is one function a head from triggers to candidates, so that yardsticks go the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices
from mtmh.data.dataset import EvaluationUsers
from mtmh.data.histories import Histories
from mtmh.evaluation.shared_preranking import shared_prerank
from mtmh.retrieval.merge import head_quotas, head_shares, quota_merge
from mtmh.retrieval.ranking import Candidates, Preranker, Requests, prerank

Search = Callable[[Indices], Candidates]  # [T] triggers -> [T, k_ann]; the trigger is not among its candidates

_BLOCK_CANDIDATES = 134_217_728  # of distinct triggers held at a time (1 GiB of items and scores)
_CHUNK_CANDIDATES = 2_097_152  # preranked at a time
_SEEN_FLAGS = 67_108_864  # users x catalogue at a time (64 MiB)


@dataclass(frozen=True)
class Cohort:
    """The users of an evaluation.

    Attributes:
        user_index: [U] int64.
        triggers: [U, T] item indices, the latest first, -1: padding.
        seen: [U] items that are neither answers nor ground truth; empty lists if seen items may be answers.
        truth: [U] items of the test period, distinct, at least one a user.
        num_without_truth: users left out because all their test items were seen before.
    """

    user_index: npt.NDArray[np.int64]
    triggers: npt.NDArray[np.int64]
    seen: Histories
    truth: Histories
    num_without_truth: int

    @property
    def num_users(self) -> int:
        """Users in the evaluation."""
        return len(self.user_index)


@dataclass(frozen=True)
class Answers:
    """K answers of every <user, trigger>, users one after another.

    Attributes:
        users: [P] row of the user in the cohort, ascending.
        triggers: [P] item indices.
        items: [P, K] item indices, -1: none.
        scores: [P, K] float32, comparable within a user, -inf: none.
    """

    users: Indices
    triggers: Indices
    items: Indices
    scores: npt.NDArray[np.float32]


def make_cohort(users: EvaluationUsers, *, num_triggers: int, exclude_seen: bool) -> Cohort:
    """Chooses triggers and ground truth.

    Args:
        users: with training history and test items.
        num_triggers: the last distinct items of the history that become triggers.
        exclude_seen: items of the history are neither answers nor ground truth.

    Raises:
        ValueError: no user has a test item that counts.
    """
    triggers = last_distinct(users.histories, num_triggers)
    if not exclude_seen:
        nothing = Histories(np.empty(0, np.int32), np.zeros(len(users.user_index) + 1, np.int64))
        return Cohort(users.user_index, triggers, nothing, users.test, 0)
    width = int(max(users.histories.items.max(initial=0), users.test.items.max(initial=0))) + 1
    seen_before = np.isin(_keys(users.test, width), _keys(users.histories, width))
    truth = _filter(users.test, ~seen_before)
    kept = np.diff(truth.offsets) > 0
    if not kept.any():
        raise ValueError(
            "no user of the sample engaged with a new item in the test period: nothing to measure"
            " (evaluation.exclude_seen = false counts repeated items too)"
        )
    seen = _filter(users.histories, np.repeat(kept, np.diff(users.histories.offsets)), kept)
    truth = _filter(truth, np.ones(len(truth.items), dtype=bool), kept)
    return Cohort(users.user_index[kept], triggers[kept], seen, truth, int((~kept).sum()))


def last_distinct(histories: Histories, count: int) -> npt.NDArray[np.int64]:
    """The last ``count`` distinct items of each history, the latest first, -1: padding. Returns [U, count]."""
    sizes = np.diff(histories.offsets)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    # By user, then item, then latest first: the first of each group is the item's last place in the history.
    order = np.lexsort((-np.arange(len(rows)), histories.items, rows))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (rows[order][1:] != rows[order][:-1]) | (histories.items[order][1:] != histories.items[order][:-1])
    places = np.sort(order[first])[::-1]  # latest first within a user, users descending
    users = rows[places]
    rank = np.arange(len(places)) - np.searchsorted(-users, -users, side="left")
    kept = rank < count
    triggers = np.full((len(sizes), count), -1, np.int64)
    triggers[users[kept], rank[kept]] = histories.items[places[kept]]
    return triggers


def prerank_users(
    cohort: Cohort,
    searches: Mapping[str, Search],
    preranker: Preranker,
    sorter: Preranker,
    *,
    num_items: int,
    k_ann: int,
    k: int,
    shared: bool = False,
) -> tuple[list[Candidates], list[npt.NDArray[np.float32]], Requests]:
    """The K preranked candidates of every <user, trigger> and head.

    Each distinct trigger is searched once for all users who share it.

    Args:
        cohort: U users.
        searches: by head, the engagement head first.
        preranker: keeps the best of each head.
        sorter: scores what is kept.
        num_items: size of the catalogue.
        k_ann: width of the searches' answers.
        k: candidates kept.
        shared: keep the K best of all heads together, by the sorter's score.

    Returns:
        by head: candidates [P, K], and their scores [P, K] that compare over heads; the P requests.
    """
    kept: dict[str, list[Candidates]] = {head: [] for head in searches}
    scores: dict[str, list[npt.NDArray[np.float32]]] = {head: [] for head in searches}
    users_a_block = max(1, _BLOCK_CANDIDATES // (cohort.triggers.shape[1] * k_ann * len(searches)))
    users_a_chunk = max(1, min(_CHUNK_CANDIDATES // (cohort.triggers.shape[1] * k_ann), _SEEN_FLAGS // num_items))
    for block in range(0, cohort.num_users, users_a_block):
        block_end = min(block + users_a_block, cohort.num_users)
        in_block = cohort.triggers[block:block_end]
        distinct = np.unique(in_block[in_block >= 0])
        found = {head: search(distinct) for head, search in searches.items()}
        for start in range(block, block_end, users_a_chunk):
            end = min(start + users_a_chunk, block_end)
            requests = _requests(cohort, start, end)
            places = np.searchsorted(distinct, requests.triggers)
            candidates = [Candidates(head, one.items[places], one.scores[places]) for head, one in found.items()]
            seen = _seen_flags(cohort, start, end, num_items)
            banned = [seen[requests.users[:, None], one.items] for one in candidates]
            if shared:
                best = shared_prerank(sorter, requests, candidates, k, banned)
            else:
                best = [prerank(preranker, requests, one, k, out) for one, out in zip(candidates, banned, strict=True)]
            for one in best:
                kept[one.head].append(one)
                scores[one.head].append(sorter.score(requests, one))
    joined = [
        Candidates(head, np.concatenate([p.items for p in parts]), np.concatenate([p.scores for p in parts]))
        for head, parts in kept.items()
    ]
    return joined, [np.concatenate(parts) for parts in scores.values()], _requests(cohort, 0, cohort.num_users)


def merged_answers(
    kept: Sequence[Candidates],
    scores: Sequence[npt.NDArray[np.float32]],
    requests: Requests,
    *,
    alpha: float,
    k: int,
) -> Answers:
    """Merges the heads' preranked candidates, ``alpha`` percent from the first head."""
    merged = quota_merge([one.items for one in kept], head_quotas(head_shares(alpha, len(kept)), k))
    return Answers(requests.users, requests.triggers, merged.items, merged.take(scores))


def user_lists(answers: Answers, num_users: int, length: int) -> npt.NDArray[np.int64]:
    """Sorts each user's answers by score; an item that several triggers brought counts once, with its best score.

    Args:
        answers: of P <user, trigger>.
        num_users: U.
        length: of the lists.

    Returns:
        [U, length] item indices, best first, ties to the lower item index, -1: none.
    """
    per_trigger = answers.items.shape[1]
    counts = np.bincount(answers.users, minlength=num_users)
    place = np.arange(len(answers.users)) - (np.cumsum(counts) - counts)[answers.users]
    shape = (num_users, max(1, int(counts.max(initial=0))), per_trigger)
    all_items, all_scores = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
    all_items[answers.users, place], all_scores[answers.users, place] = answers.items, answers.scores
    items, scores = all_items.reshape(num_users, -1), all_scores.reshape(num_users, -1)
    # By score first, then stably by item: the first of equal items is the best one.
    items, scores = _reorder(np.argsort(-scores, axis=1, kind="stable"), items, scores)
    items, scores = _reorder(np.argsort(items, axis=1, kind="stable"), items, scores)
    repeated = np.zeros(items.shape, dtype=bool)
    repeated[:, 1:] = items[:, 1:] == items[:, :-1]
    gone = repeated | (items < 0)
    items, scores = np.where(gone, -1, items), np.where(gone, np.float32(-np.inf), scores)
    items, scores = _reorder(np.argsort(-scores, axis=1, kind="stable"), items, scores)
    lists = np.where(np.isfinite(scores), items, -1)[:, :length]
    return np.pad(lists, ((0, 0), (0, length - lists.shape[1])), constant_values=-1)


def _reorder(order: Indices, *arrays: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    return tuple(np.take_along_axis(array, order, axis=1) for array in arrays)


def _requests(cohort: Cohort, start: int, end: int) -> Requests:
    """The <user, trigger> pairs of some users; the triggers are the history that the preranker sees."""
    triggers = cohort.triggers[start:end]
    users, places = np.nonzero(triggers >= 0)
    return Requests(triggers[users, places], users, triggers)


def _seen_flags(cohort: Cohort, start: int, end: int, num_items: int) -> npt.NDArray[np.bool_]:
    """[users, num_items + 1] whether the user has seen the item; the last column answers for item -1."""
    seen = cohort.seen.users(start, end)
    flags = np.zeros((end - start, num_items + 1), dtype=bool)
    flags[np.repeat(np.arange(end - start), np.diff(seen.offsets)), seen.items] = True
    return flags


def _keys(lists: Histories, width: int) -> npt.NDArray[np.int64]:
    """One number for each <user, item>."""
    keys: npt.NDArray[np.int64] = np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets)) * width
    return keys + lists.items


def _filter(lists: Histories, kept: npt.NDArray[np.bool_], users: npt.NDArray[np.bool_] | None = None) -> Histories:
    """The kept items [H] of the kept users [U] (default: all)."""
    ends = np.concatenate([[0], np.cumsum(kept)])[lists.offsets]
    sizes = np.diff(ends) if users is None else np.diff(ends)[users]
    return Histories(lists.items[kept], np.concatenate([[0], np.cumsum(sizes)]))
