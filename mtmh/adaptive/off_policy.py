"""What another way to choose would have earned, estimated from logged choices with known probabilities.

The three estimators of the literature (Dudik and others, 1103.4601), a few lines each; the libraries that have them pin
old versions of what this project builds on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Estimator = Literal["ips", "snips", "dr"]


@dataclass(frozen=True)
class Logged:
    """N choices and what they earned.

    Attributes:
        features: [N, F].
        arms: [N] places of the alphas that were used.
        propensities: [N] probabilities with which they were drawn, above 0.
        rewards: [N].
    """

    features: Floats
    arms: npt.NDArray[np.int64]
    propensities: Floats
    rewards: Floats

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class OffPolicyValue:
    """An estimate of a mean reward.

    Attributes:
        value: of the mean.
        standard_error: of the estimate.
    """

    value: float
    standard_error: float


def off_policy_values(logged: Logged, target: Floats, expected: Floats) -> dict[Estimator, OffPolicyValue]:
    """Estimates the mean reward of another policy.

    ``ips`` weighs each reward by how much more often the other would have chosen so: right on average, but with much
    variance. ``snips`` divides by the sum of the weights: less variance, a bias of the order 1 / N. ``dr`` begins with
    a model of the reward and corrects it by the weighted errors: right if model or probabilities are.

    Args:
        logged: N choices, at least one.
        target: [N, A] probabilities with which the other policy would choose.
        expected: [N, A] rewards that a model expects.
    """
    rows = np.arange(len(logged))
    weights = target[rows, logged.arms] / logged.propensities
    total = max(float(weights.sum()), 1e-12)
    ratio = float(weights @ logged.rewards) / total
    corrected = (target * expected).sum(axis=1) + weights * (logged.rewards - expected[rows, logged.arms])
    return {
        "ips": _mean(weights * logged.rewards),
        "snips": OffPolicyValue(ratio, float(np.linalg.norm(weights * (logged.rewards - ratio))) / total),
        "dr": _mean(corrected),
    }


def values_of_alphas(
    logged: Logged, num_alphas: int, expected: Callable[[Floats], Floats]
) -> list[dict[Estimator, OffPolicyValue]]:
    """The estimates for each alpha, if it were used for every request."""
    rewards = expected(logged.features)
    always = np.eye(num_alphas)
    return [off_policy_values(logged, np.broadcast_to(row, (len(logged), num_alphas)), rewards) for row in always]


def _mean(values: Floats) -> OffPolicyValue:
    return OffPolicyValue(float(values.mean()), float(values.std()) / len(values) ** 0.5)
