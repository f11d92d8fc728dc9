"""The number of candidates that the triggers of a user keep, and where answers say that they come from."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mtmh.config import RetrievalConfig
from mtmh.data.arrays import Scores
from mtmh.retrieval.query import Query
from mtmh.retrieval.ranking import USER, Candidates, Requests
from mtmh.retrieval.user_list import trigger_widths, user_list


def test_few_triggers_keep_more_and_a_short_list_more_again() -> None:
    assert list(trigger_widths(30, 500, 50)) == [30, 60, 120, 240, 480, 500]
    assert list(trigger_widths(30, 500, 2)) == [480, 500]
    assert list(trigger_widths(30, 500, 1)) == [500]
    assert list(trigger_widths(30, 10, 3)) == [30]


@given(st.integers(1, 60), st.integers(1, 700), st.integers(1, 60))
def test_the_first_width_could_fill_the_list_and_the_last_one_does_with_any_trigger(
    k: int, length: int, num_triggers: int
) -> None:
    widths = list(trigger_widths(k, length, num_triggers))
    assert k <= widths[0] <= max(k, length)
    assert widths[0] * num_triggers >= length
    assert widths[0] == k or widths[0] // 2 * num_triggers < length
    assert widths == sorted(set(widths))
    assert widths[-1] == max(k, length)


class ByItem:
    """Scores an item by its number."""

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        return candidates.items.astype(np.float32)


class InOrder:
    """Scores candidates so that they stay in their order."""

    def score(self, requests: Requests, candidates: Candidates) -> Scores:
        return -np.broadcast_to(np.arange(candidates.items.shape[1], dtype=np.float32), candidates.items.shape)


def candidates(head: str, items: list[list[int]]) -> Candidates:
    found = np.array(items)
    return Candidates(head, found, 0.01 * found.astype(np.float32))


def test_answers_of_the_user_name_the_head_and_the_trigger_that_found_them_best() -> None:
    requests = Requests(np.array([70, 71]), np.zeros(2, int), np.array([[70, 71]]))
    kept = [
        candidates("engagement", [[1, 9, 4], [2, 5, 9]]),
        candidates("relevance", [[8, 1, 5], [9, 3, -1]]),
        candidates(USER, [[9, -1, 5, 6], [-1, 1, -1, -1]]),
    ]
    found = user_list(requests, kept, ByItem(), [0, 0, 4], ByItem())
    # 9 is first for trigger 71 under relevance and second for 70 under engagement; 6 is the user's alone.
    assert found.items.tolist() == [9, 6, 5, 1]
    assert found.heads.tolist() == [1, 2, 0, 0]
    assert found.triggers.tolist() == [71, 70, 71, 70]
    np.testing.assert_allclose(found.similarities, [0.09, 0.06, 0.05, 0.01])
    assert found.scores.tolist() == [9.0, 6.0, 5.0, 1.0]


def test_quotas_of_heads_alone_stay_as_the_merge_has_them() -> None:
    requests = Requests(np.array([70]), np.zeros(1, int), np.array([[70]]))
    kept = [candidates("engagement", [[9, 8, 7]]), candidates("relevance", [[7, 8, 3]])]
    found = user_list(requests, kept, InOrder(), [1, 2], ByItem())
    assert dict(zip(found.items.tolist(), found.heads.tolist(), strict=True)) == {9: 0, 8: 1, 7: 1}


def test_a_request_that_divides_the_list_among_heads_gets_nothing_else() -> None:
    defaults = RetrievalConfig(user_share=60.0, num_probes=1)
    heads = ["engagement", "relevance"]

    def quotas(**settings: Any) -> tuple[int, list[int]]:
        plan = Query(**{"history": [1], "k": 10} | settings).plan(defaults, heads, user_source=True)
        return plan.of_user, list(plan.quotas.values())

    assert quotas() == (6, [2, 2])
    assert quotas(alpha=70) == (0, [7, 3])
    assert quotas(shares={"relevance": 1.0}) == (0, [0, 10])
    assert quotas(history=None, triggers=[1]) == (0, [5, 5])
