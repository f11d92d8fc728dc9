"""Settings of the evaluation: how many users, which cut-offs, what it is compared with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mtmh.config.base import Positive, Settings

Yardstick = Literal["item-item", "ease", "als", "teacher", "popularity"]


class EvaluationConfig(Settings):
    """The paper's protocol (section 2): triggers from the past, recall against what the user engaged with in T2.

    Two parts grow with the catalogue beyond the model's own index, in the memory of one process. ``exact_search``
    holds all vectors of all heads as float32. Of the ``yardsticks``, ``teacher`` holds the teacher's vectors so;
    ``item-item``, ``ease`` and ``als`` hold the training histories of all users, and ``ease`` a number for each pair of
    items (it is left out above 20,000 items with events). A catalogue too large for that is evaluated without them.
    ``als`` needs the package ``implicit`` and is left out where that is not installed.
    """

    num_users: Positive = 2000  # sampled, at most
    num_triggers: Positive = 50  # latest items of a user that are asked about
    recall_at: list[Positive] = [5, 20, 100, 500]  # cut-offs; lists are as long as the largest
    # Of the curve of recall and topic match.
    alphas: list[Annotated[float, Field(ge=0.0, le=100.0)]] = [0, 10, 30, 50, 70, 90, 100]
    rank_all: bool = False  # rows of learned preranking that score every candidate of every trigger: minutes
    exact_search: bool = True  # a row that tells the index's loss from the model's
    yardsticks: list[Yardstick] = ["item-item", "ease", "als", "teacher", "popularity"]  # those that there are
    # Events of the test period that a user has had already when it is asked: input, neither answers nor ground truth. 1
    # with data.split.test_events = 2: trained on all but the last two items, tested on the last.
    given_events: Annotated[int, Field(ge=0)] = 0
    exclude_seen: bool = True  # items of the user's training history are neither answers nor ground truth
