"""The way in which candidates are found and ranked, for a model or a yardstick, and the answers that come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mtmh.data.arrays import Indices
from mtmh.retrieval.ranking import Candidates, Ranker

# [T] triggers, how many candidates are looked at, and how many each needs at least -> as many of each, best first, and
# more where there may be gaps among them; the trigger is not among its candidates.
Search = Callable[[Indices, int, int], Candidates]


@dataclass(frozen=True)
class Answers:
    """The answers of every <user, trigger>, at most K.

    Attributes:
        users: [P] row of the user in the cohort.
        triggers: [P] item indices.
        items: [P, N] item indices, -1: none; N is more than K where several heads answer.
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
