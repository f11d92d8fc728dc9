"""The candidates that the triggers of users keep, their scores, and the lists and answers of every merge of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices, Scores, widened
from mtmh.data.histories import last_distinct
from mtmh.evaluation.cohort import Cohort
from mtmh.evaluation.pipeline import Answers, Pipeline
from mtmh.evaluation.shared_preranking import shared_merge
from mtmh.evaluation.user_items import Numbers, UserItems
from mtmh.retrieval.merge import Overlaps, find_overlaps, head_quotas, head_shares, taken_by_quota
from mtmh.retrieval.ranking import USER, Candidates, Ranker, Requests, UserListSource

CHUNK_CANDIDATES = 2_097_152  # ranked at a time
SEEN_FLAGS = 67_108_864  # users x catalogue at a time (64 MiB)
_LONGEST_HISTORY = 1000  # items of a user that rankers see
_MERGED_ROWS = 4096  # triggers at a time: what is computed of them stays in the processor's cache

Chosen = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Kept:
    """Users whose triggers keep equally many candidates, and these.

    Attributes:
        users: [G] rows of the cohort.
        requests: the P triggers; their users are numbered from 0 to G - 1.
        candidates: by head, [P, width], best first.
    """

    users: npt.NDArray[np.intp]
    requests: Requests
    candidates: list[Candidates]

    @property
    def width(self) -> int:
        """Candidates kept a trigger and head."""
        return int(self.candidates[0].items.shape[1])

    @property
    def items(self) -> list[Indices]:
        """[P, width] of each head."""
        return [of_head.items for of_head in self.candidates]

    @cached_property
    def overlaps(self) -> Overlaps:
        """The heads' candidates in each other's lists."""
        return find_overlaps(self.items)

    def select(self, chosen: npt.NDArray[np.bool_]) -> Kept:
        """Some of the users; ``chosen`` is [G]."""
        if chosen.all():
            return self
        rows = chosen[self.requests.users]
        place, asking = np.cumsum(chosen) - 1, self.requests
        selected = Kept(
            self.users[chosen],
            Requests(asking.triggers[rows], place[asking.users[rows]], asking.histories[chosen]),
            [Candidates(head.head, head.items[rows], head.scores[rows]) for head in self.candidates],
        )
        if "overlaps" in self.__dict__:  # a cached property is an entry of the object's own
            selected.__dict__["overlaps"] = [[places[rows] for places in others] for others in self.overlaps]
        return selected

    def merged(self, k: int, alpha: float) -> list[Chosen]:
        """What the quota merge takes of the first ``k`` of each head: one mask [P, k] a head."""
        quotas = head_quotas(head_shares(alpha, len(self.candidates)), k)
        taken = [np.empty((len(items), min(k, self.width)), bool) for items in self.items]
        for start in range(0, len(self.requests.triggers), _MERGED_ROWS):
            rows = slice(start, start + _MERGED_ROWS)
            overlaps = [[np.minimum(places[rows, :k], k) for places in others] for others in self.overlaps]
            parts = taken_by_quota([items[rows, :k] for items in self.items], quotas, overlaps)
            for of_head, part in zip(taken, parts, strict=True):
                of_head[rows] = part
        return taken


@dataclass(frozen=True)
class Ranked:
    """What is kept, under the scores of a sorter.

    Attributes:
        kept: candidates.
        pairs: their distinct <user, item>, and those of the users' own candidates.
        numbers: by head, [P, width] of the pairs.
        of_pairs: [N + 1] scores of the pairs, -inf for none, where the trigger plays no part; None: it does.
        of_answers: by head, [P, width] scores where it does.
        own: [G, C] numbers of the users' own candidates; None: there are none.
    """

    kept: Kept
    pairs: UserItems
    numbers: list[Numbers]
    of_pairs: Scores | None
    of_answers: list[Scores]
    own: Numbers | None = None
    _chosen: dict[tuple[int, float], list[Chosen]] = field(default_factory=dict)

    def scores(self, head: int) -> Scores:
        """[P, width] of the candidates of a head."""
        return self.of_answers[head] if self.of_pairs is None else self.of_pairs[self.numbers[head]]

    def chosen(self, pipeline: Pipeline, k: int, alpha: float, head: int | None) -> dict[int, Chosen]:
        """K candidates of each trigger, of the merge or of one head: by head, a mask [P, k]."""
        if head is not None:
            return {head: self.kept.candidates[head].items[:, :k] >= 0}
        if (k, alpha) not in self._chosen:  # lists and the triggers of their items go by the same
            self._chosen.clear()
            self._chosen[k, alpha] = self._shared(k) if pipeline.shared else self.kept.merged(k, alpha)
        return dict(enumerate(self._chosen[k, alpha]))

    def _shared(self, k: int) -> list[Chosen]:
        """What one ranking of all heads takes."""
        merged = shared_merge(self.kept.items, [self.scores(head) for head in range(len(self.numbers))], k)
        taken = [np.zeros((len(items), max(k, self.kept.width)), bool) for items in self.kept.items]
        for head, mask in enumerate(taken):
            rows, columns = np.nonzero(merged.heads == head)
            mask[rows, merged.ranks[rows, columns]] = True
        return [mask[:, : self.kept.width] for mask in taken]

    def lists(self, chosen: dict[int, Chosen], length: int, *, with_own: bool, by_own_score: bool) -> Numbers:
        """The users' lists out of what is chosen; an item that several triggers brought counts with its best score.

        Args:
            chosen: by head, masks [P, width].
            length: of a list.
            with_own: the users' own candidates beside it.
            by_own_score: sort by the similarity under the head that brought an item.

        Returns:
            [G, length] item indices, best first, ties to the lower item index, -1: none.
        """
        if self.of_pairs is not None and not by_own_score:
            marked = self._marked(chosen)
            if with_own and self.own is not None:
                marked[self.own] = True
            return self.pairs.lists(self._order[marked[self._order]], length)
        best = self._best(chosen, by_own_score)
        return self.pairs.lists(self.pairs.by_score(best[:-1]), length)

    def brought_by(self, chosen: dict[int, Chosen], lists: Indices) -> Numbers:
        """The trigger of the best answer that is the item, the first of equals, -1: there is none.

        Args:
            chosen: by head, masks [P, width].
            lists: [G, length] item indices, -1: none.
        """
        triggers = self.kept.requests.triggers
        first = np.full(len(self.pairs.keys) + 1, len(triggers))
        best = None if self.of_pairs is not None else self._best(chosen, by_own_score=False)
        for head, mask in chosen.items():
            rows, numbers = np.nonzero(mask)[0], self.numbers[head][mask]
            if best is not None:
                is_best = self.of_answers[head][mask] == best[numbers]
                rows, numbers = rows[is_best], numbers[is_best]
            np.minimum.at(first, numbers, rows)
        first[-1] = len(triggers)
        brought: Numbers = np.append(triggers, -1)[first[self.pairs.find(lists)]]
        return brought

    @cached_property
    def _order(self) -> Numbers:
        """Pairs by user, best first."""
        assert self.of_pairs is not None
        return self.pairs.by_score(self.of_pairs[:-1])

    def _marked(self, chosen: dict[int, Chosen]) -> Chosen:
        """[N + 1] which pairs are chosen."""
        marked = np.zeros(len(self.pairs.keys) + 1, bool)
        for head, mask in chosen.items():
            marked[self.numbers[head][mask]] = True
        return marked

    def _best(self, chosen: dict[int, Chosen], by_own_score: bool) -> Scores:
        """[N + 1] the largest score by which any trigger brought a pair, -inf: none."""
        best = np.full(len(self.pairs.keys) + 1, -np.inf, np.float32)
        for head, mask in chosen.items():
            scores = self.kept.candidates[head].scores if by_own_score else self.of_answers[head]
            np.fmax.at(best, self.numbers[head][mask], scores[mask])
        return best


@dataclass(frozen=True)
class RankedCandidates:
    """The candidates of all users, wide enough to fill their lists; every alpha is merged out of them.

    Attributes:
        pipeline: that found them.
        cohort: U users.
        length: of a list.
        groups: every user is in one of them.
    """

    pipeline: Pipeline
    cohort: Cohort
    length: int
    groups: list[Ranked]

    def sorted_by(self, sorter: Ranker) -> RankedCandidates:
        """The same candidates under other scores."""
        pipeline = replace(self.pipeline, sorter=sorter)
        groups = [
            score(self.cohort, part.kept, pipeline, self.length, (part.pairs, part.numbers)) for part in self.groups
        ]
        return RankedCandidates(pipeline, self.cohort, self.length, groups)

    def answers(self, alpha: float | None = None, head: int | None = None) -> Answers:
        """K answers a trigger: of the merge at ``alpha`` (None: the pipeline's), or of one head by its place alone."""
        alpha = self.pipeline.alpha if alpha is None else alpha
        items = []
        for part in self.groups:
            chosen = part.chosen(self.pipeline, self.pipeline.k, alpha, head)
            by_head = [np.where(mask, part.kept.items[place][:, : mask.shape[1]], -1) for place, mask in chosen.items()]
            items.append(np.concatenate(by_head, axis=1))
        width = max(answers.shape[1] for answers in items)
        asking = [part.kept.requests for part in self.groups]
        return Answers(
            np.concatenate([part.kept.users[part.kept.requests.users] for part in self.groups]),
            np.concatenate([requests.triggers for requests in asking]),
            np.concatenate([widened(answers, width) for answers in items]),
        )

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
        lists = np.full((self.cohort.num_users, self.length), -1, np.int64)
        with_own = head is None and not heads_alone
        for part in self.groups:
            chosen = part.chosen(self.pipeline, part.kept.width, alpha, head)
            lists[part.kept.users] = part.lists(chosen, self.length, with_own=with_own, by_own_score=by_own_score)
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
            chosen = part.chosen(self.pipeline, part.kept.width, alpha, head)
            found[part.kept.users] = part.brought_by(chosen, lists[part.kept.users])
        return found


def score(
    cohort: Cohort,
    kept: Kept,
    pipeline: Pipeline,
    length: int,
    numbered: tuple[UserItems, list[Numbers]] | None = None,
) -> Ranked:
    """Puts candidates under the scores of the sorter, and adds candidates that it proposes for the users.

    Args:
        cohort: all users.
        kept: candidates of some.
        pipeline: whose sorter and share of own candidates count.
        length: of a user's list.
        numbered: the pairs of the candidates, and more, where they are known.
    """
    sorter, num_users = pipeline.sorter, len(kept.users)
    pairs, numbers = numbered or UserItems.number([kept.requests.users] * len(kept.candidates), kept.items, num_users)
    if pipeline.shared or not isinstance(sorter, UserListSource):
        return Ranked(kept, pairs, numbers, None, [sorter.score(kept.requests, part) for part in kept.candidates])
    own = None
    if num_own := round(length * pipeline.user_share / 100.0):
        proposed = _proposed(cohort, kept, pairs.rows(), pipeline.num_items, sorter, num_own)
        pairs, own, numbers = pairs.with_items(proposed, numbers)
    items = pairs.rows()
    requests = Requests(cohort.triggers[kept.users, 0], np.arange(num_users), kept.requests.histories)
    scores = sorter.score(requests, Candidates(USER, items, np.zeros(items.shape, np.float32)))
    return Ranked(kept, pairs, numbers, np.append(scores[items >= 0], np.float32(-np.inf)), [], own)


def _proposed(
    cohort: Cohort, kept: Kept, found: Numbers, num_items: int, source: UserListSource, num_own: int
) -> Indices:
    """[G, num_own] the best candidates of each user, out of what the triggers kept and what the source adds."""
    proposed = []
    users_a_chunk = max(1, min(CHUNK_CANDIDATES // max(1, found.shape[1]), SEEN_FLAGS // num_items))
    for start in range(0, len(kept.users), users_a_chunk):
        part = slice(start, start + users_a_chunk)
        seen = seen_flags(cohort, kept.users[part], num_items)
        rows = np.arange(len(seen))[:, None]

        def may_answer(items: Indices, seen: Chosen = seen, rows: Indices = rows) -> Chosen:
            return ~seen[rows, items]

        proposed.append(source.best_of_users(kept.requests.histories[part], found[part], num_own, may_answer)[0])
    return np.concatenate(proposed)


def make_requests(cohort: Cohort) -> Requests:
    """The <user, trigger> pairs of all users of a cohort, with the whole history of each, as service has them."""
    users, places = np.nonzero(cohort.triggers >= 0)
    histories = last_distinct(cohort.histories, _LONGEST_HISTORY)
    width = max(1, int((histories >= 0).sum(axis=1).max(initial=0)))
    return Requests(cohort.triggers[users, places], users, histories[:, :width])


def seen_flags(cohort: Cohort, users: Indices, num_items: int) -> Chosen:
    """[users, num_items + 1] whether the user has seen the item; the last column answers for item -1."""
    seen = cohort.seen.select(users)
    flags = np.zeros((len(users), num_items + 1), dtype=bool)
    flags[np.repeat(np.arange(len(users)), np.diff(seen.offsets)), seen.items] = True
    return flags
