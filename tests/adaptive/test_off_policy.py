"""Estimators of another policy's reward: by hand on three rows, and against the truth of a simulation."""

from __future__ import annotations

import numpy as np
import pytest

from mtmh.adaptive.off_policy import Logged, off_policy_values, values_of_alphas

EARNS = np.array([[0.1, 0.3], [0.5, 0.2]])  # by kind of request and alpha


def simulated(count: int, seed: int) -> Logged:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 2, count)
    probabilities = np.where(kinds == 0, 0.2, 0.7)  # of the first alpha
    arms = (rng.random(count) >= probabilities).astype(np.int64)
    propensities = np.where(arms == 0, probabilities, 1.0 - probabilities)
    rewards = (rng.random(count) < EARNS[kinds, arms]).astype(np.float64)
    return Logged(np.stack([np.ones(count), kinds.astype(np.float64)], axis=1), arms, propensities, rewards)


def truth(features: np.ndarray) -> np.ndarray:
    return EARNS[features[:, 1].astype(np.int64)]


def test_three_rows_by_hand() -> None:
    logged = Logged(np.ones((3, 1)), np.array([0, 1, 0]), np.array([0.5, 0.25, 0.8]), np.array([1.0, 0.5, 0.0]))
    target = np.array([[1.0, 0.0], [0.5, 0.5], [0.4, 0.6]])
    expected = np.array([[0.5, 0.25], [0.5, 0.25], [0.5, 0.25]])
    found = off_policy_values(logged, target, expected)
    weights = [2.0, 2.0, 0.5]
    assert found["ips"].value == pytest.approx((2.0 + 1.0 + 0.0) / 3)
    assert found["snips"].value == pytest.approx(3.0 / sum(weights))
    direct = [0.5, 0.375, 0.4 * 0.5 + 0.6 * 0.25]
    corrections = [2.0 * 0.5, 2.0 * 0.25, 0.5 * -0.5]
    assert found["dr"].value == pytest.approx(np.mean(np.add(direct, corrections)))


def test_estimates_are_within_their_errors_of_the_truth() -> None:
    values = values_of_alphas(simulated(20_000, seed=0), 2, truth)
    for arm, by_estimator in enumerate(values):
        right = EARNS[:, arm].mean()  # both kinds are equally frequent
        for name, estimate in by_estimator.items():
            assert abs(estimate.value - right) < 4 * estimate.standard_error, (arm, name)
            assert estimate.standard_error < 0.02
    naive = simulated(20_000, seed=0)
    mean = naive.rewards[naive.arms == 0].mean()
    assert abs(mean - EARNS[:, 0].mean()) > 0.05  # what the estimators are for: the log is no even sample


def test_stated_errors_are_those_seen_and_a_model_makes_them_smaller() -> None:
    logs = [simulated(500, seed) for seed in range(300)]
    found = [values_of_alphas(log, 2, truth)[0] for log in logs]
    for name in ("ips", "snips", "dr"):
        seen = np.std([by_name[name].value for by_name in found])
        stated = np.mean([by_name[name].standard_error for by_name in found])
        assert stated == pytest.approx(seen, rel=0.15), name
    assert np.std([f["dr"].value for f in found]) < np.std([f["ips"].value for f in found])
    wrong = [values_of_alphas(log, 2, lambda features: np.full((len(features), 2), 0.9))[0]["dr"] for log in logs]
    assert np.mean([estimate.value for estimate in wrong]) == pytest.approx(0.3, abs=0.01)
