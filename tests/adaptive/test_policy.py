"""The bandit over alphas: its regression against the plain formula, its probabilities, and that it learns contexts."""

from __future__ import annotations

import numpy as np
import pytest

from mtmh.adaptive.policy import AlphaPolicy

ALPHAS = [20.0, 35.0, 50.0, 65.0, 80.0]


def some_rows(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = np.concatenate([np.ones((count, 1)), rng.normal(size=(count, 2))], axis=1)
    return features, rng.integers(0, len(ALPHAS), count), rng.uniform(0, 1, count)


def test_it_expects_what_ridge_regression_over_the_powers_of_alpha_expects() -> None:
    features, arms, rewards = some_rows(200)
    policy = AlphaPolicy(ALPHAS, 3, explore=0.1)
    policy.learn(features, arms, rewards)
    a = (np.array(ALPHAS) - 50) / 30
    rows = np.stack([np.concatenate([x, x * a[arm], x * a[arm] ** 2]) for x, arm in zip(features, arms, strict=True)])
    weights = np.linalg.solve(rows.T @ rows + np.eye(9), rows.T @ rewards)
    for place in range(len(ALPHAS)):
        wanted = (
            features @ weights[:3] + a[place] * (features @ weights[3:6]) + a[place] ** 2 * (features @ weights[6:])
        )
        np.testing.assert_allclose(policy.expectation()(features)[:, place], wanted, rtol=1e-9)


def test_what_is_forgotten_leaves_nothing() -> None:
    features, arms, rewards = some_rows(60)
    kept, all_of_them = (AlphaPolicy(ALPHAS, 3, explore=0.1, seed=1) for _ in range(2))
    kept.learn(features[:40], arms[:40], rewards[:40])
    all_of_them.learn(features, arms, rewards)
    all_of_them.learn(features[40:], arms[40:], rewards[40:], sign=-1)
    np.testing.assert_allclose(all_of_them.expectation()(features), kept.expectation()(features), rtol=1e-9)
    np.testing.assert_allclose(all_of_them.probabilities(features[0]), kept.probabilities(features[0]), atol=1e-9)


@pytest.mark.parametrize("alphas", [[30.0, 70.0], ALPHAS])
def test_every_alpha_keeps_its_part_of_the_exploration(alphas: list[float]) -> None:
    policy = AlphaPolicy(alphas, 2, explore=0.2)
    features = np.array([1.0, 0.5])
    arms = np.arange(400) % len(alphas)
    policy.learn(np.tile(features, (400, 1)), arms, (arms == 0).astype(np.float64))
    probabilities = policy.probabilities(features)
    assert probabilities.sum() == pytest.approx(1.0)
    assert probabilities.min() >= 0.2 / len(alphas) - 1e-12
    assert probabilities[0] > 0.75
    drawn = np.bincount([policy.choose(features)[0] for _ in range(1000)], minlength=len(alphas))
    np.testing.assert_allclose(drawn / 1000, probabilities, atol=0.05)


def test_requests_of_two_kinds_come_to_have_their_own_alpha() -> None:
    """The first kind earns most at 20, the second at 80; a fixed alpha serves one of them badly."""
    rng = np.random.default_rng(3)
    policy = AlphaPolicy(ALPHAS, 2, explore=0.05, seed=2)
    earns = np.array([[0.30, 0.25, 0.2, 0.15, 0.1], [0.1, 0.15, 0.2, 0.25, 0.3]])
    earned, best = 0.0, 0.0
    for _ in range(4000):
        kind = int(rng.integers(2))
        features = np.array([1.0, 2.0 * kind - 1.0])
        arm, _ = policy.choose(features)
        policy.learn(features[None], np.array([arm]), np.array([float(rng.random() < earns[kind, arm])]))
        earned += earns[kind, arm]
        best += earns[kind].max()
    assert policy.expectation()(np.array([[1.0, -1.0]])).argmax() == 0
    assert policy.expectation()(np.array([[1.0, 1.0]])).argmax() == 4
    assert earned / best > 0.9  # the best fixed alpha has two thirds
