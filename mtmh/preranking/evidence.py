"""Evidence about the candidates of a user: what every source says of each, as numbers that a learned sum weighs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mtmh.data.arrays import Floats, Indices
from mtmh.data.item_vectors import ItemVectors, StackedVectors
from mtmh.preranking.neighbours import BothSums, Neighbours

_DECAY = 0.9  # an item of the history counts so much of the one after it, where recency counts
_BLOCK_FLOATS = 8_388_608  # gathered or computed at a time (32 MiB)
_TABLES = ("common users", "common users, recent", "linear weights", "linear weights, recent")
_POPULAR = 1000  # items that are candidates of all users, at most
_FLOOR = 1e-3  # of a cosine, in a logarithm


class Evidence:
    """Evidence about candidates, whoever found them.

    Of each source of vectors: the largest similarity to an item of the history, the mean, and the mean in which later
    items weigh more. Of the table of cosines: logarithms of their sum and of the sum by recency; of the table of linear
    weights the sums themselves. The model's logit. Logarithms of how many events an item
    has, how many late ones, and how long the history is.

    Args:
        vectors: source -> [I, D] unit-length vectors; a row of zeros says nothing.
        cosines: the table of co-occurrence.
        linear: the table of linear weights.
        popularity: [I, 2] float32: logarithms of 1 + the item's events, and of 1 + its late ones.
        history_length: items of a history that are compared one by one; the table sums all.

    Attributes:
        names: of the kinds of evidence, F.
    """

    def __init__(
        self,
        vectors: Mapping[str, ItemVectors],
        cosines: Neighbours,
        linear: Neighbours,
        popularity: StackedVectors,
        history_length: int,
    ) -> None:
        self.vectors = vectors
        self.cosines = cosines
        self.linear = linear
        self._popular = _most_popular(popularity)
        self.popularity = popularity
        self._length = history_length
        similarities = [f"{source} {kind}" for source in vectors for kind in ("largest", "mean", "recent")]
        self.names = ["logit", *similarities, *_TABLES, "events", "late events", "history length"]

    def sums(self, histories: Indices) -> BothSums:
        """What the tables of cosines and of linear weights add up to over histories [U, H]: evenly, and by recency."""
        weights = np.stack(history_weights(histories))
        return self.cosines.sums(histories, weights), self.linear.sums(histories, weights)

    def __call__(
        self,
        histories: Indices,
        candidates: Indices,
        logits: Floats,
        sums: BothSums | None = None,
    ) -> Floats:
        """Gathers the evidence.

        Args:
            histories: [U, H] item indices, the latest first, -1: padding.
            candidates: [U, C] item indices, -1: none (its evidence means nothing).
            logits: [U, C] of the user-to-item model.
            sums: over the histories, where they are known already.

        Returns:
            [U, C, F] float32.
        """
        evidence = np.empty((*candidates.shape, len(self.names)), np.float32)
        evidence[..., 0] = logits
        column = 1
        cosines, linear = sums or self.sums(histories)
        for source in self.vectors:
            similar = evidence[..., column : column + 3]
            self._compare(source, histories[:, : self._length], candidates, similar)
            column += 3
        evidence[..., column : column + 2] = np.log(cosines.of(candidates) + np.float32(_FLOOR)).transpose(1, 2, 0)
        evidence[..., column + 2 : column + 4] = linear.of(candidates).transpose(1, 2, 0)
        evidence[..., column + 4 : column + 6] = self.popularity[np.maximum(candidates, 0)]
        lengths = (histories >= 0).sum(axis=1, keepdims=True, dtype=np.float32)
        evidence[..., column + 6] = np.log(np.maximum(lengths, 1.0))
        return evidence

    def _compare(self, source: str, histories: Indices, candidates: Indices, out: Floats) -> None:
        """Largest, mean and recent similarity [U, C, 3] of candidates to histories, a block of users at a time."""
        vectors = self.vectors[source]
        weights = np.stack(history_weights(histories))
        weights /= np.maximum(weights.sum(axis=2, keepdims=True), np.float32(1e-6))
        width = candidates.shape[1] * (vectors.shape[1] + histories.shape[1])
        block = max(1, _BLOCK_FLOATS // max(1, width))
        for start in range(0, len(candidates), block):
            part = slice(start, start + block)
            # [U, C, H]: with the many candidates as rows the product takes two thirds of the time.
            similar = np.matmul(vectors[candidates[part]], vectors[histories[part]].transpose(0, 2, 1))
            if (padding := histories[part] < 0).any():
                similar[np.broadcast_to(padding[:, None], similar.shape)] = -1.0  # which has no weight
            out[part, :, 0] = similar.max(axis=2, initial=-1.0)
            out[part, :, 1:] = np.matmul(similar, weights[:, part].transpose(1, 2, 0))

    def proposed(self, sums: BothSums, k: int) -> list[Indices]:
        """Candidates of users by `sums`, and items that are popular with all; [U, k] each, best first, -1: none."""
        cosines, linear = sums
        return [
            *(np.broadcast_to(popular[:k], (cosines.num_users, len(popular[:k]))) for popular in self._popular),
            cosines.nearest(0, k),
            linear.nearest(0, k),
            linear.nearest(1, k),
        ]

    def with_added(self, vectors: Mapping[str, ItemVectors], count: int) -> Evidence:
        """That of a catalogue with ``count`` more items at its end, which have no events.

        Args:
            vectors: source -> vectors of all items, these included.
            count: of the added items.
        """
        none = np.zeros((count, self.popularity.shape[1]), np.float32)
        return Evidence(vectors, self.cosines, self.linear, self.popularity.with_added(none), self._length)


def history_weights(histories: Indices) -> tuple[Floats, Floats]:
    """Weights of the items of histories [U, H], the latest first: all alike, and by recency; 0 for padding. [U, H]."""
    even = (histories >= 0).astype(np.float32)
    return even, even * np.float32(_DECAY) ** np.arange(histories.shape[1], dtype=np.float32)


def _most_popular(popularity: StackedVectors) -> list[Indices]:
    """The items with the most events, and those with the most late ones; none without."""
    counts = np.asarray(popularity.base[:])
    ranked = np.argsort(-counts, axis=0, kind="stable")[:_POPULAR].T
    return [items[counts[items, kind] > 0.0] for kind, items in enumerate(ranked)]
