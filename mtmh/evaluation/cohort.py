"""The users of an evaluation: their training history, the triggers out of it, and what they did in the test period."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtmh.data.dataset import EvaluationUsers
from mtmh.data.histories import Histories, last_distinct


@dataclass(frozen=True)
class Cohort:
    """The users of an evaluation.

    Attributes:
        user_index: [U] int64.
        histories: [U] the whole training history of each, the latest last.
        triggers: [U, T] item indices, the latest first, -1: padding.
        seen: [U] items that are neither answers nor ground truth; empty lists if seen items may be answers.
        truth: [U] items of the test period, distinct, at least one a user.
        num_without_truth: users left out because all their test items were seen before.
    """

    user_index: npt.NDArray[np.int64]
    histories: Histories
    triggers: npt.NDArray[np.int64]
    seen: Histories
    truth: Histories
    num_without_truth: int

    @property
    def num_users(self) -> int:
        """Users in the evaluation."""
        return len(self.user_index)

    def select(self, rows: npt.NDArray[np.intp]) -> Cohort:
        """Some of the users, in the given order."""
        lists = (self.histories.select(rows), self.triggers[rows], self.seen.select(rows), self.truth.select(rows))
        return Cohort(self.user_index[rows], *lists, self.num_without_truth)


def make_cohort(users: EvaluationUsers, *, num_triggers: int, exclude_seen: bool, num_given: int = 0) -> Cohort:
    """Chooses triggers and ground truth.

    Args:
        users: with training history and test items.
        num_given: the first test items of a user that count as its history.
        num_triggers: the last distinct items of the history that become triggers.
        exclude_seen: items of the history are neither answers nor ground truth.

    Raises:
        ValueError: no user has a test item that counts.
    """
    if num_given:
        users = _with_given(users, num_given)
    triggers = last_distinct(users.histories, num_triggers)
    if not exclude_seen:
        nothing = Histories(np.empty(0, np.int32), np.zeros(len(users.user_index) + 1, np.int64))
        return Cohort(users.user_index, users.histories, triggers, nothing, users.test, 0)
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
    return Cohort(users.user_index[kept], seen, triggers[kept], seen, truth, int((~kept).sum()))


def _with_given(users: EvaluationUsers, num_given: int) -> EvaluationUsers:
    """The users that have test items beyond the first ``num_given``, which are at the end of their histories."""
    left = np.maximum(np.diff(users.test.offsets) - num_given, 0)
    rows = np.flatnonzero(left > 0)
    test, histories = users.test.select(rows), users.histories.select(rows)
    given = test.before(test.offsets[:-1] + num_given, np.full(len(rows), num_given, np.int64))
    items = np.insert(histories.items, np.repeat(histories.offsets[1:], num_given), given.items)
    longer = Histories(items, histories.offsets + given.offsets)
    return EvaluationUsers(users.user_index[rows], longer, test.before(test.offsets[1:], left[rows]))


def _keys(lists: Histories, width: int) -> npt.NDArray[np.int64]:
    """One number for each <user, item>."""
    keys: npt.NDArray[np.int64] = np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets)) * width
    return keys + lists.items


def _filter(lists: Histories, kept: npt.NDArray[np.bool_], users: npt.NDArray[np.bool_] | None = None) -> Histories:
    """The kept items [H] of the kept users [U] (default: all)."""
    ends = np.concatenate([[0], np.cumsum(kept)])[lists.offsets]
    sizes = np.diff(ends) if users is None else np.diff(ends)[users]
    return Histories(lists.items[kept], np.concatenate([[0], np.cumsum(sizes)]))
