"""A policy that gives each user an alpha, fitted on what every alpha gave every user of one period."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ALPHAS = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0)
FIXED = 50.0  # whose match the policy is to have
_RIDGE = 0.01  # of the number of users


@dataclass(frozen=True)
class Outcomes:
    """What every alpha gives every user of a period.

    Attributes:
        features: [U, F].
        recall: [U, A].
        matches: [U, A] candidates with the trigger's fine topic.
        pairs: [U, A] candidates that were compared.
    """

    features: Floats
    recall: Floats
    matches: Floats
    pairs: Floats

    def match_of(self, arms: npt.NDArray[np.int64]) -> float:
        """L2 match of all users together, each at an alpha of its own ([U] places)."""
        rows = np.arange(len(arms))
        return float(self.matches[rows, arms].sum() / max(1.0, self.pairs[rows, arms].sum()))


@dataclass(frozen=True)
class Policy:
    """Expects of an alpha what it gains over the mean of all, linear in features, quadratic in alpha.

    Attributes:
        mean: [F - 1] of the features, the constant left out.
        spread: [F - 1] standard deviations.
        weights: [2 * F, 2] for recall and match.
        price: of match, in recall.
    """

    mean: Floats
    spread: Floats
    weights: Floats
    price: float = 0.0

    @classmethod
    def fit(cls, outcomes: Outcomes) -> Policy:
        """Least squares over all users and alphas; then the price by which the policy has the match of `FIXED`."""
        plain = outcomes.features[:, 1:]
        mean, spread = plain.mean(axis=0), np.maximum(plain.std(axis=0), 1e-9)
        empty = cls(mean, spread, np.zeros((2 * outcomes.features.shape[1], 2)))
        rows = empty._rows(outcomes.features)
        share = outcomes.matches / np.maximum(outcomes.pairs.mean(axis=0).mean(), 1e-9)
        gains = [values - values.mean(axis=1, keepdims=True) for values in (outcomes.recall, share)]
        flat = rows.reshape(-1, rows.shape[2])
        normal = flat.T @ flat + _RIDGE * len(plain) * np.eye(flat.shape[1])
        weights = np.linalg.solve(normal, flat.T @ np.stack([gain.ravel() for gain in gains], axis=1))
        fitted = cls(mean, spread, weights)
        wanted = outcomes.match_of(np.full(len(plain), ALPHAS.index(FIXED)))
        expected = fitted._rows(outcomes.features) @ weights
        price = _price(expected[:, :, 0], expected[:, :, 1], outcomes, wanted)
        return cls(mean, spread, weights, price)

    def choose(self, features: Floats) -> npt.NDArray[np.int64]:
        """[U] places of the alphas."""
        expected = self._rows(features) @ self.weights
        return np.asarray((expected[:, :, 0] + self.price * expected[:, :, 1]).argmax(axis=1), np.int64)

    def shown(self) -> dict[str, list[float]]:
        """The weights for recall, by power of alpha."""
        size = len(self.weights) // 2
        return {"alpha": self.weights[:size, 0].tolist(), "alpha^2": self.weights[size:, 0].tolist()}

    def _rows(self, features: Floats) -> Floats:
        """[U, A, 2 * F], of which the mean over alphas is taken off, as it is off what they explain."""
        standard = np.concatenate([features[:, :1], (features[:, 1:] - self.mean) / self.spread], axis=1)
        scaled = np.asarray(ALPHAS) / 50.0 - 1.0
        powers = np.stack([scaled, scaled**2], axis=1)
        powers = powers - powers.mean(axis=0)
        rows = powers[None, :, :, None] * standard[:, None, None, :]
        return np.asarray(rows.reshape(len(features), len(ALPHAS), -1))


def most_recall(recall: Floats, outcomes: Outcomes, match: float) -> npt.NDArray[np.int64]:
    """[U] places of alphas with the most of ``recall`` [U, A] where all users' match is at least ``match``."""
    shares = outcomes.matches / np.maximum(outcomes.pairs.mean(axis=0).mean(), 1e-9)
    price = _price(recall, shares, outcomes, match)
    return np.asarray((recall + price * shares).argmax(axis=1), np.int64)


def _price(recall: Floats, share: Floats, outcomes: Outcomes, match: float) -> float:
    """The smallest price of match by which users who take the best sum have at least so much of it (bisection)."""
    low, high = 0.0, 1.0
    while outcomes.match_of((recall + high * share).argmax(axis=1)) < match and high < 1e6:
        high *= 4.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        enough = outcomes.match_of((recall + middle * share).argmax(axis=1)) >= match
        low, high = (low, middle) if enough else (middle, high)
    return high


def fixed_at_match(outcomes: Outcomes, match: float) -> Floats:
    """[U] expected recall where all users get one of two neighbouring alphas by lot, which together have this match.

    Of several such mixtures the one of the most recall; beyond the fixed alphas' matches the nearest of them.
    """
    matches = np.array([outcomes.match_of(np.full(len(outcomes.recall), arm)) for arm in range(len(ALPHAS))])
    match = float(np.clip(match, matches.min(), matches.max()))
    found = []
    for arm in range(len(ALPHAS) - 1):
        low, high = sorted((matches[arm], matches[arm + 1]))
        if low <= match <= high:
            part = 0.0 if high == low else (match - matches[arm]) / (matches[arm + 1] - matches[arm])
            found.append((1.0 - part) * outcomes.recall[:, arm] + part * outcomes.recall[:, arm + 1])
    return max(found, key=lambda recall: float(recall.mean()))
