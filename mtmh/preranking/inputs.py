"""Inputs of the preranker for an item: id and float features, and the frozen embeddings of the heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.artifacts import Artifact, open_artifact
from mtmh.data.arrays import open_array
from mtmh.data.dataset import Dataset
from mtmh.tower.artifact import EmbeddingsSummary, vectors_file


class ItemInputs:
    """Inputs of all items, memory-mapped.

    Attributes:
        vectors: head -> [I, D] embeddings that are inputs.
        heads: their names.
        frozen_dim: width of these side by side, 0 without.
    """

    def __init__(self, dataset: Dataset, heads: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Takes the embeddings [I, D] of some heads."""
        self._table = dataset.item_table
        self.vectors = heads
        self.heads = list(heads)
        self.frozen_dim = sum(vectors.shape[1] for vectors in self.vectors.values())

    def gather(
        self, items: npt.NDArray[np.integer[Any]], hide_id: npt.NDArray[np.bool_] | None = None
    ) -> tuple[KeyedJaggedTensor, Tensor, Tensor]:
        """Id features, float features [U, F] and frozen embeddings [U, E] of items [U]."""
        sparse, dense = self._table.gather(items, hide_id)
        frozen = [np.take(vectors, items, axis=0) for vectors in self.vectors.values()]
        parts = [np.empty((len(items), 0), np.float32), *frozen]
        return sparse, dense, torch.from_numpy(np.concatenate(parts, axis=1))


def open_inputs(dataset: Dataset, embeddings: Path | None) -> tuple[ItemInputs, dict[str, Artifact]]:
    """The inputs of a preranker, and the artifacts that they come from.

    Args:
        dataset: the dataset artifact.
        embeddings: folder of the item embeddings, if they are inputs.

    Raises:
        ValueError: there are no embeddings, or they are of another dataset.
    """
    artifacts = {"dataset": dataset.artifact}
    if embeddings is None:
        return ItemInputs(dataset, {}), artifacts
    artifact = open_artifact(embeddings, "embeddings")
    if artifact.manifest.inputs.get("dataset") != dataset.artifact.manifest.digest:
        raise ValueError(
            f"{embeddings}: embeddings of another dataset than {dataset.artifact.path}; run mtmh embed again"
        )
    made = EmbeddingsSummary.model_validate(artifact.summary)
    shape = (dataset.num_items, made.dim)
    heads = {head: open_array(embeddings / vectors_file(head), np.float32, shape) for head in made.heads}
    return ItemInputs(dataset, heads), artifacts | {"embeddings": artifact}
