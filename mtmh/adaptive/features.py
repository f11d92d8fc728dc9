"""Numbers of a request by which its alpha is chosen: how popular its triggers are, how the heads agree about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices
from mtmh.data.item_vectors import ItemVectors

FEATURES = ("constant", "popularity", "agreement", "length", "spread")

_REFERENCES = 256  # popular items to which a trigger is compared under each head
_LONGEST = 500  # triggers of a request that count as a long history


class RequestFeatures:
    """Computes the numbers from item vectors and training counts alone, without a search.

    ``popularity``: mean log of how many times as popular as the mean item the triggers are, over that of the most
    popular one, 0 .. 1.
    ``agreement``: mean correlation of a trigger's similarities to popular items under the first head with those under
    the second, -1 .. 1; 0 with one head. ``length``: log of the number of triggers, 0 .. 1. ``spread``: 1 less the
    length of the mean of their vectors under the first head, 0 (one trigger, or all alike) .. 1.

    Args:
        vectors: head -> [I, D] unit length, the engagement head first.
        popularity: [I] training events of the items, or anything in proportion to them.
    """

    def __init__(
        self, vectors: Mapping[str, ItemVectors], popularity: npt.NDArray[np.int64] | npt.NDArray[np.float64]
    ) -> None:
        self._vectors = list(vectors.values())
        self._log_counts = np.log1p(popularity / max(float(popularity.mean()), 1e-12))
        self._highest = max(float(self._log_counts.max(initial=0.0)), 1e-12)
        least = max(0, len(popularity) - _REFERENCES)
        popular = np.sort(np.argpartition(popularity, least)[least:]) if least else np.arange(len(popularity))
        self._references = [of_head[popular] for of_head in self._vectors]

    def of(self, triggers: Indices) -> npt.NDArray[np.float64]:
        """[F] numbers of a request.

        Args:
            triggers: [T] item indices; -1, and items beyond those that there were, say nothing.
        """
        known = np.asarray(triggers)[: 4 * _LONGEST]
        known = known[(known >= 0) & (known < len(self._log_counts))]
        if not len(known):
            return np.array([1.0, 0.0, 0.0, 0.0, 0.0])
        first = self._vectors[0][known]
        return np.array(
            [
                1.0,
                float(self._log_counts[known].mean()) / self._highest,
                self._agreement(known, first),
                min(1.0, float(np.log(len(known))) / float(np.log(_LONGEST))),
                1.0 - min(1.0, float(np.linalg.norm(first.mean(axis=0)))),
            ]
        )

    def of_users(self, triggers: Sequence[Indices]) -> npt.NDArray[np.float64]:
        """[U, F] numbers of several requests."""
        return np.stack([self.of(of_user) for of_user in triggers])

    def _agreement(self, known: Indices, first: npt.NDArray[np.float32]) -> float:
        if len(self._vectors) < 2:
            return 0.0
        ways = [first @ self._references[0].T, self._vectors[1][known] @ self._references[1].T]
        centred = [similarities - similarities.mean(axis=1, keepdims=True) for similarities in ways]
        norms = np.linalg.norm(centred[0], axis=1) * np.linalg.norm(centred[1], axis=1)
        return float(((centred[0] * centred[1]).sum(axis=1) / np.maximum(norms, 1e-9)).mean())
