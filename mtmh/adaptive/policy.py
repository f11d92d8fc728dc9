"""Thompson sampling over a few alphas: a linear model of what a list earns, and draws from what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_DRAWS = 256  # of the model's weights, from which the probabilities of a request are counted
_PRIOR_PRECISION = 1.0
_PRIOR_ROWS, _PRIOR_VARIANCE = 10.0, 0.25  # of a reward between 0 and 1, before anything is known


class AlphaPolicy:
    """Expects of an alpha the reward ``x . (w0 + a w1 + a^2 w2)``, for features ``x`` and ``a`` from -1 to 1.

    What one alpha earns tells of its neighbours. The weights have a Gaussian posterior (ridge regression); an alpha's
    probability is the share of draws of the weights under which it is the best, and ``explore`` of all requests are
    spread evenly, so that every probability is known and none is below ``explore`` over the number of alphas.

    Args:
        alphas: percent, ascending, at least two.
        num_features: F.
        explore: share of requests whose alpha is drawn evenly, above 0.
        seed: of the draws.
    """

    def __init__(self, alphas: Sequence[float], num_features: int, explore: float, seed: int = 0) -> None:
        assert len(alphas) > 1
        assert list(alphas) == sorted(set(alphas))
        assert 0.0 < explore <= 1.0
        self.alphas = np.asarray(alphas, np.float64)
        self._explore = explore
        scaled = np.interp(self.alphas, [self.alphas[0], self.alphas[-1]], [-1.0, 1.0])
        self._powers = np.stack([np.ones_like(scaled), scaled, scaled**2], axis=1)[:, : min(3, len(alphas))]
        size = num_features * self._powers.shape[1]
        self._products, self._sums = np.zeros((size, size)), np.zeros(size)
        self._squares, self._count = 0.0, 0
        self._rng = np.random.default_rng(seed)
        self._known: tuple[Floats, Floats] | None = None

    def learn(self, features: Floats, arms: npt.NDArray[np.int64], rewards: Floats, sign: int = 1) -> None:
        """Takes rewards into account, or out of it again.

        Args:
            features: [N, F].
            arms: [N] places of the alphas that were used.
            rewards: [N], 0 .. 1.
            sign: 1, or -1 to forget what was learned.
        """
        rows = self._rows(features, arms)
        self._products += sign * rows.T @ rows
        self._sums += sign * rewards @ rows
        self._squares += sign * float(rewards @ rewards)
        self._count += sign * len(rewards)
        self._known = None

    def probabilities(self, features: Floats) -> Floats:
        """[A] of the alphas for one request; they sum to 1."""
        mean, spread = self._posterior()
        draws = mean + self._rng.standard_normal((_DRAWS, len(mean))) @ spread
        earned = draws @ self._all_rows(features[None])[0].T
        best = np.bincount(earned.argmax(axis=1), minlength=len(self.alphas)) / _DRAWS
        return (1.0 - self._explore) * best + self._explore / len(self.alphas)

    def choose(self, features: Floats) -> tuple[int, float]:
        """The place of an alpha for one request, drawn, and the probability that it had."""
        probabilities = self.probabilities(features)
        arm = int(self._rng.choice(len(self.alphas), p=probabilities))
        return arm, float(probabilities[arm])

    def expectation(self) -> Callable[[Floats], Floats]:
        """Features [N, F] -> [N, A] rewards that the model expects as it is now, whatever it learns later."""
        mean, _ = self._posterior()
        return lambda features: self._all_rows(features) @ mean

    def _posterior(self) -> tuple[Floats, Floats]:
        """The mean of the weights, and a matrix that turns standard normal rows into deviations from it."""
        if self._known is None:
            precision = self._products + _PRIOR_PRECISION * np.eye(len(self._sums))
            mean = np.asarray(np.linalg.solve(precision, self._sums), np.float64)
            left = max(0.0, self._squares - float(self._sums @ mean))
            variance = (left + _PRIOR_ROWS * _PRIOR_VARIANCE) / (self._count + _PRIOR_ROWS)
            spread = variance**0.5 * np.linalg.inv(np.linalg.cholesky(precision))
            self._known = mean, np.asarray(spread, np.float64)
        return self._known

    def _rows(self, features: Floats, arms: npt.NDArray[np.int64]) -> Floats:
        return (features[:, None, :] * self._powers[arms][:, :, None]).reshape(len(features), -1)

    def _all_rows(self, features: Floats) -> Floats:
        """[N, A, size]."""
        return (features[:, None, None, :] * self._powers[None, :, :, None]).reshape(
            len(features), len(self.alphas), -1
        )
