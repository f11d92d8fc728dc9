"""Scores items for users with the files of a preranker artifact: one batched product, whatever the candidates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors.torch import load_model
from torch import Tensor

from mtmh.artifacts import Artifact, open_artifact
from mtmh.data.arrays import open_array
from mtmh.modules.preranker import UserTower, task_probability
from mtmh.preranking.layout import USER_TOWER, VECTORS, PrerankerSummary, TaskSummary

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.integer[Any]]

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
    """

    def __init__(self, vectors: Floats, user_tower: UserTower, tasks: list[TaskSummary], history_length: int) -> None:
        self.vectors = vectors
        self._user_tower = user_tower.eval()
        self._directions = vectors[:, : user_tower.dim]
        self.tasks = tasks
        self._history_length = history_length

    @classmethod
    def load(cls, folder: Path, dataset_digest: str | None = None) -> Self:
        """Opens a preranker artifact; vectors are memory-mapped.

        Args:
            folder: of the artifact.
            dataset_digest: of the dataset whose items it must know; ``None``: not checked.

        Raises:
            ValueError: no preranker artifact there, or of another dataset.
        """
        artifact = open_artifact(folder, "preranker")
        if dataset_digest is not None and artifact.manifest.inputs.get("dataset") != dataset_digest:
            raise ValueError(f"{folder}: preranker of another dataset than the index; run mtmh train-preranker again")
        made = read_summary(artifact)
        user_tower = UserTower(made.dim, made.hidden, made.temperature, made.prior)
        load_model(user_tower, folder / USER_TOWER)
        vectors = open_array(folder / VECTORS, np.float32, (made.num_items, made.dim + len(made.prior)))
        return cls(vectors, user_tower, made.tasks, made.history_length)

    def extended(self, stand_ins: Indices) -> Self:
        """One with ``N`` more items at the end of the catalogue, each with the vector of the item ``stand_ins[n]``."""
        return type(self)(
            np.concatenate([self.vectors, self.vectors[stand_ins]]),
            self._user_tower,
            self.tasks,
            self._history_length,
        )

    @torch.inference_mode()
    def queries(self, histories: Indices, users: Indices, triggers: Indices) -> tuple[Tensor, Tensor]:
        """What the user side is reduced to.

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
        there = histories >= 0
        pooled = np.empty((len(histories), self._directions.shape[1]), np.float32)
        block = max(1, _BLOCK_FLOATS // max(1, histories.shape[1] * self._directions.shape[1]))
        for start in range(0, len(histories), block):
            part, known = histories[start : start + block], there[start : start + block, :, None]
            sums = np.where(known, self._directions[part], np.float32(0.0)).sum(axis=1)
            pooled[start : start + block] = sums / np.maximum(known.sum(axis=1), 1)
        own = self._directions[triggers]
        history = np.where(np.count_nonzero(there, axis=1)[users, None] > 0, pooled[users], own)
        out: tuple[Tensor, Tensor] = self._user_tower.queries(torch.from_numpy(history), torch.from_numpy(own))
        return out

    @torch.inference_mode()
    def logits(self, queries: Tensor, biases: Tensor, items: Indices) -> Iterator[tuple[slice, Tensor]]:
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
        catalogue = torch.from_numpy(np.array(self.vectors)) if whole else torch.empty(0)
        block = max(1, _BLOCK_FLOATS // max(1, floats))
        for start in range(0, len(items), block):
            rows = slice(start, start + block)
            wanted = torch.from_numpy(np.maximum(items[rows], 0).astype(np.int64))
            if whole:
                all_items = torch.matmul(queries[rows], catalogue.T)
                found = all_items.gather(2, wanted[:, None, :].expand(-1, num_queries, -1))
            else:
                vectors = torch.from_numpy(self.vectors[wanted.numpy()])
                found = torch.bmm(queries[rows], vectors.transpose(1, 2))
            yield rows, found + biases[rows, :, None]

    @torch.inference_mode()
    def score(self, histories: Indices, users: Indices, triggers: Indices, items: Indices) -> Floats:
        """The tasks' probabilities, weighted and added up; shapes as in `queries` and `logits`.

        Returns:
            [T, C] float32; -inf where there is no candidate.
        """
        scores = np.empty(items.shape, np.float32)
        for rows, logits in self.logits(*self.queries(histories, users, triggers), items):
            scores[rows] = sum(task.weight * task_probability(logits, task.label) for task in self.tasks)
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
        raise ValueError(f"{artifact.path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
