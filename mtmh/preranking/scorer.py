"""Scores items for users with the files of a preranker artifact: one batched product, whatever the candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from mtmh.artifacts import Artifact, open_artifact
from mtmh.data.arrays import Floats, Indices, open_array
from mtmh.data.item_vectors import StackedVectors
from mtmh.preranking.artifact import USER_TOWER, VECTORS, PrerankerSummary, TaskSummary
from mtmh.preranking.forward import UserQueries, probability
from mtmh.preranking.fresh import ItemTower

_BLOCK_FLOATS = 8_388_608  # gathered or computed at a time (32 MiB)
# Logits of the whole catalogue cost less than those of gathered candidates where it is at most so many times larger.
_WHOLE_CATALOGUE = 8


class Scorer:
    """Item vectors and the user tower. Safe to use from several threads.

    Args:
        vectors: [I, D + K] float32, of K queries.
        user_tower: for directions of width D.
        tasks: of the score.
        history_length: items of a history that count, its first ones.
        item_tower: for newer items; None: there will be none.
        heads: whose embeddings the item tower takes, in this order.

    Attributes:
        vectors: [I + F, D + K], the F newer items last.
        tasks: of the score.
    """

    def __init__(
        self,
        vectors: Floats | StackedVectors,
        user_tower: UserQueries,
        tasks: list[TaskSummary],
        history_length: int,
        item_tower: ItemTower | None = None,
        heads: Sequence[str] = (),
    ) -> None:
        self.vectors = vectors if isinstance(vectors, StackedVectors) else StackedVectors(vectors)
        self._user_tower = user_tower
        self.tasks = tasks
        self._history_length = history_length
        self._item_tower = item_tower
        self._heads = heads

    @classmethod
    def load(cls, folder: Path, num_items: int | None = None) -> Self:
        """Opens a preranker artifact; vectors are memory-mapped.

        Args:
            folder: of the artifact.
            num_items: that it must know; ``None``: not checked.

        Raises:
            ValueError: no preranker artifact there, or it knows other items.
        """
        made = read_summary(open_artifact(folder, "preranker"))
        if num_items is not None and made.num_items != num_items:
            raise ValueError(f"{folder}: a preranker of {made.num_items} items, the index has {num_items}")
        user_tower = UserQueries.load(folder / USER_TOWER, made.dim, made.hidden, len(made.prior), made.temperature)
        vectors = open_array(folder / VECTORS, np.float32, (made.num_items, made.dim + len(made.prior)))
        return cls(vectors, user_tower, made.tasks, made.history_length, ItemTower(folder), made.heads)

    def with_added(self, items: pa.Table, vectors: Mapping[str, Floats]) -> Self:
        """One with N more items at the end of the catalogue, whose vectors the item tower makes of their features.

        Args:
            items: N rows, ``item_id`` and raw features; one that is no column counts as missing.
            vectors: head -> [N, D] float32, of the heads of the index.
        """
        assert self._item_tower is not None
        own = self._item_tower.embed(items, [vectors[head] for head in self._heads])
        return type(self)(
            self.vectors.with_added(own),
            self._user_tower,
            self.tasks,
            self._history_length,
            self._item_tower,
            self._heads,
        )

    def directions(self, items: Indices) -> Floats:
        """Unit-length directions of items; [..., D] for item indices [...]."""
        return self.vectors[items][..., : self._user_tower.dim]

    def queries(self, histories: Indices, users: Indices, triggers: Indices) -> tuple[Floats, Floats]:
        """Reduces the user side to a vector and a constant a task.

        Args:
            histories: [U, H] item indices, latest first, -1: padding.
            users: [T] row of each trigger's user in ``histories``.
            triggers: [T] item indices.

        Returns:
            queries [T, K, D], biases [T, K]; a user without history is the trigger alone.
        """
        if max(histories.max(initial=-1), triggers.max(initial=-1)) >= len(self.vectors):
            raise ValueError(f"the preranker knows {len(self.vectors)} items; it was asked about a newer one")
        histories = histories[:, : self._history_length]
        filled = histories >= 0
        dim = self._user_tower.dim
        pooled = np.empty((len(histories), dim), np.float32)
        block = max(1, _BLOCK_FLOATS // max(1, histories.shape[1] * self.vectors.shape[1]))
        for start in range(0, len(histories), block):
            part, known = histories[start : start + block], filled[start : start + block, :, None]
            sums = np.where(known, self.vectors[part][..., :dim], np.float32(0.0)).sum(axis=1)
            pooled[start : start + block] = sums / np.maximum(known.sum(axis=1), 1)
        own = self.vectors[triggers][:, :dim]
        history = np.where(np.count_nonzero(filled, axis=1)[users, None] > 0, pooled[users], own)
        return self._user_tower(history, own)

    def logits(self, queries: Floats, biases: Floats, items: Indices) -> Iterator[tuple[slice, Floats]]:
        """Logits of candidates, a block of triggers at a time.

        Args:
            queries: [T, K, D].
            biases: [T, K].
            items: [T, C] item indices, -1: no candidate (its logits mean nothing).

        Returns:
            for each block: its triggers, and [block, K, C].
        """
        if items.max(initial=-1) >= len(self.vectors):
            raise ValueError(f"the preranker knows {len(self.vectors)} items; it was asked about a newer one")
        num_items, dim = self.vectors.shape
        num_queries, num_candidates = queries.shape[1], items.shape[1]
        whole = num_items <= _WHOLE_CATALOGUE * num_candidates and len(items) > 1
        floats = num_items * num_queries if whole else num_candidates * max(dim, num_queries)
        catalogue = self.vectors[:] if whole else np.empty(0, np.float32)
        block = max(1, _BLOCK_FLOATS // max(1, floats))
        for start in range(0, len(items), block):
            rows = slice(start, start + block)
            wanted = np.maximum(items[rows], 0)
            if whole:
                all_items = (queries[rows].reshape(-1, dim) @ catalogue.T).reshape(-1, num_queries, num_items)
                found = np.stack([np.take(own, places, axis=1) for own, places in zip(all_items, wanted, strict=True)])
            else:
                found = (self.vectors[wanted] @ queries[rows].transpose(0, 2, 1)).transpose(0, 2, 1)
            yield rows, found + biases[rows, :, None]

    def score(self, histories: Indices, users: Indices, triggers: Indices, items: Indices) -> Floats:
        """The tasks' probabilities, weighted and added up; shapes as in `queries` and `logits`.

        Returns:
            [T, C] float32; -inf where there is no candidate.
        """
        scores = np.empty(items.shape, np.float32)
        for rows, logits in self.logits(*self.queries(histories, users, triggers), items):
            scores[rows] = sum(task.weight * probability(logits, task.label) for task in self.tasks)
        return np.where(items >= 0, scores, np.float32(-np.inf))


def read_summary(artifact: Artifact) -> PrerankerSummary:
    """The checked facts of a preranker artifact.

    Raises:
        ValueError: they are not those of a preranker.
    """
    try:
        return PrerankerSummary.model_validate(artifact.summary)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{artifact.path}: {field}: {first['msg']}; mtmh train-preranker writes it anew from its checkpoint"
        ) from None
