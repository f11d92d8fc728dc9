"""The preranker's item tower for items that training has not seen: written like the index's, fed with raw features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.artifacts import Artifact
from mtmh.config import PrerankerConfig, PrerankerTrainingConfig
from mtmh.config.recorded import recorded_section
from mtmh.data.arrays import Floats
from mtmh.data.dataset import Dataset
from mtmh.data.schema import FeatureSchema
from mtmh.modules.preranker import Preranker
from mtmh.preranking.model_builder import build_preranker
from mtmh.tower.export import TOWER, read_unseen, unseen_schema
from mtmh.tower.item_features import ItemFeatures, write_features
from mtmh.tower.quantised import TowerSettings, read_quantised, read_settings, write_quantised

_CHUNK_ITEMS = 8192


class PrerankerTowerSettings(TowerSettings):
    """Settings from which the preranker is built."""

    preranker: PrerankerConfig
    frozen_dim: Annotated[int, Field(ge=0)]
    prior: list[float]

    def build(self, device: torch.device) -> Preranker:
        """The preranker at arbitrary weights."""
        return build_preranker(self.preranker, self.features, self.frozen_dim, self.prior, device)


class ItemTower:
    """Vectors of items from their raw features and their embeddings under the heads.

    Loading and embedding are safe from several threads; the model is read at the first use.

    Args:
        folder: of a preranker artifact.

    Raises:
        ValueError: the artifact has no tower.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / TOWER
        self._features = ItemFeatures(self._folder)

    def embed(self, rows: pa.Table, frozen: Sequence[Floats]) -> Floats:
        """Computes the vectors of N items, at least one.

        Args:
            rows: item_id and features; a feature that is no column counts as missing.
            frozen: [N, D] of each head whose embeddings are inputs.

        Returns:
            [N, W] float32, as `mtmh.modules.Preranker` gives them.
        """
        extra = np.concatenate([np.empty((len(rows), 0), np.float32), *frozen], axis=1)
        parts = [
            self._embed(rows.slice(start, _CHUNK_ITEMS), extra[start : start + _CHUNK_ITEMS])
            for start in range(0, len(rows), _CHUNK_ITEMS)
        ]
        return np.concatenate(parts)

    @torch.no_grad()
    def _embed(self, rows: pa.Table, extra: Floats) -> Floats:
        values, lengths, dense = map(torch.from_numpy, self._features.encode(rows))
        sparse = KeyedJaggedTensor(self._model.sparse_nn.keys, values, lengths=lengths.reshape(-1))
        vectors: Floats = self._model(sparse, dense, torch.from_numpy(extra)).numpy()
        return vectors

    @cached_property
    def _model(self) -> Preranker:
        settings = read_settings(self._folder, PrerankerTowerSettings)
        self._features.check(settings.features)
        return read_quantised(self._folder, settings, settings.build)


def write_item_tower(folder: Path, tables: Literal["int8", "fp16"], dataset: Dataset, checkpoint: Artifact) -> None:
    """Writes the item tower of a checkpoint into the folder of a preranker.

    Args:
        folder: of the artifact that is being written.
        tables: their precision.
        dataset: that the preranker was trained on.
        checkpoint: of the preranker.

    Raises:
        ValueError: the files of the checkpoint do not hold this model, or the dataset lacks what raw features need.
    """
    facts = checkpoint.summary["preranker"]
    trained = recorded_section(checkpoint, "preranker", PrerankerConfig)
    settings = PrerankerTowerSettings(
        features=unseen_schema(FeatureSchema.model_validate(checkpoint.summary["features"])),
        tables=tables,
        # How it was trained is no part of what it is.
        preranker=trained.model_copy(update={"training": PrerankerTrainingConfig()}),
        frozen_dim=facts["frozen_dim"],
        prior=facts["prior"],
    )
    model = settings.build(torch.device("cpu"))
    read_unseen(model, checkpoint.path, hidden_rows=1)
    (folder / TOWER).mkdir()
    write_features(folder / TOWER, dataset, hidden_rows=1)
    write_quantised(folder / TOWER, model.eval(), settings)
