"""Intervals over seeds, paired differences, and what they say about a claim."""

from __future__ import annotations

import numpy as np
import pytest

from mtmh.evaluation.metrics import Estimate
from mtmh.evaluation.results import Row
from mtmh.evaluation.user_values import UserValues
from mtmh.papers.claims import judge
from mtmh.papers.figures import Measured
from mtmh.papers.intervals import cell

USERS = 400


def estimate(value: float) -> Estimate:
    return Estimate(value=value, standard_error=0.03, low=0, high=1)


def test_an_interval_has_both_users_and_seeds_in_it() -> None:
    assert cell([estimate(0.2)]) == "20.00 ±5.88"
    # Seeds: variance 0.0032 / 2; users: 0.0009.
    assert cell([estimate(0.16), estimate(0.24)]) == "20.00 ±9.80"
    assert cell([None]) == "–"


def row(list_length: float) -> Row:
    return Row(
        name="mtmh", kind="merged", recall={}, ndcg={}, hit_rate={}, fresh_recall={}, match_l1=None, match_l2=None,
        coverage=0.5, popular=None, fresh=None, list_length=list_length,
    )  # fmt: skip


def measured(
    recall: float, noise: float = 0.0, seeds: int = 1, shift: float = 0.0, list_length: float = 500.0
) -> Measured:
    """Users that differ much from each other, alike in all models; ``noise`` is a model's own."""
    common = np.random.default_rng(0).random(USERS)
    users = {}
    for seed in range(seeds):
        own = np.random.default_rng([1, seed, int(1000 * recall)]).normal(0.0, 1.0, USERS) * noise
        values = common + recall + own + shift * seed
        nothing = (np.zeros(USERS), np.zeros(USERS))
        users[seed] = UserValues(np.arange(USERS), {500: values}, nothing, nothing)
    return Measured([row(list_length)] * seeds, users, "mtmh run")


def test_a_difference_is_paired_by_user() -> None:
    difference = measured(0.02, noise=0.001).above(measured(0.01, noise=0.001), "recall@500")
    assert difference is not None
    assert difference.value == pytest.approx(0.01, abs=0.001)
    assert difference.half < 0.001  # unpaired it were 0.04: users differ by 0.29
    assert measured(0.02).above(measured(0.01), "L2 match") is None  # no topics


def test_seeds_that_disagree_widen_a_difference() -> None:
    together = measured(0.02, seeds=3).above(measured(0.01, seeds=3), "recall@500")
    apart = measured(0.02, seeds=3, shift=0.01).above(measured(0.01, seeds=3), "recall@500")
    assert together is not None
    assert apart is not None
    assert (together.value, together.num_seeds) == (pytest.approx(0.01), 3)
    assert together.half == pytest.approx(0.0, abs=1e-9)
    assert apart.half == pytest.approx(1.96 * 0.01 / np.sqrt(3), rel=0.01)


def test_seeds_are_paired_by_number_where_some_are_missing() -> None:
    whole, lacking = measured(0.02, seeds=3, shift=0.01), measured(0.01, seeds=3, shift=0.01)
    del lacking.users[0]
    difference = whole.above(lacking, "recall@500")
    assert difference is not None
    assert (difference.value, difference.num_seeds) == (pytest.approx(0.01), 2)
    del lacking.users[1], lacking.users[2]
    assert whole.above(lacking, "recall@500") is None


def test_a_claim_holds_only_where_its_interval_leaves_out_zero() -> None:
    found = judge(
        {
            "MTMH": measured(0.03, noise=0.01),
            "ItemCF": measured(0.01, noise=0.01),
            "NeuCF": measured(0.05, noise=0.01),
            "MoL": measured(0.03, noise=0.01),
        },
        ("table1",),
    )
    verdicts = {claim.text: claim.verdict for claim in found}
    assert verdicts["MTMH is above ItemCF in recall@500"] == "holds"
    assert verdicts["MTMH is above NeuCF in recall@500"] == "the contrary"
    assert verdicts["MTMH is above MoL in recall@500"] == "not told"
    assert not any("match" in text or "HLLM" in text for text in verdicts)  # not measured


@pytest.mark.parametrize(
    ("of_better", "of_worse", "verdicts"),
    [
        (500.0, 496.0, ("holds", "the contrary")),
        (500.0, 494.0, ("lists differ", "lists differ")),
        (312.0, 500.0, ("holds", "the contrary")),  # all the more
    ],
)
def test_more_recall_in_longer_lists_proves_nothing(
    of_better: float, of_worse: float, verdicts: tuple[str, str]
) -> None:
    better = measured(0.03, noise=0.01, list_length=of_better)
    worse = measured(0.01, noise=0.01, list_length=of_worse)
    told = [judge({"MTMH": more, "ItemCF": less}, ("table1",)) for more, less in ((better, worse), (worse, better))]
    assert [claim.verdict for (claim,) in told] == list(verdicts)
