"""Vectors of the preranker for items that training has not seen, from their raw features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from mtmh.data.arrays import Floats
from mtmh.tower.artifact import TOWER
from mtmh.tower.item_features import ItemFeatures

if TYPE_CHECKING:
    from mtmh.modules.preranker import Preranker

_CHUNK_ITEMS = 8192


class ItemTower:
    """Vectors of items from their raw features and their embeddings under the heads.

    Loading and embedding are safe from several threads; the model is read, and TorchRec imported, at the first use.

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

    def _embed(self, rows: pa.Table, extra: Floats) -> Floats:
        import torch
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        values, lengths, dense = map(torch.from_numpy, self._features.encode(rows))
        sparse = KeyedJaggedTensor(self._model.sparse_nn.keys, values, lengths=lengths.reshape(-1))
        with torch.no_grad():
            vectors: Floats = self._model(sparse, dense, torch.from_numpy(extra)).numpy()
        return vectors

    @cached_property
    def _model(self) -> Preranker:
        from mtmh.preranking.item_tower import PrerankerTowerSettings
        from mtmh.tower.quantised import read_quantised, read_settings

        settings = read_settings(self._folder, PrerankerTowerSettings)
        self._features.check(settings.features)
        return read_quantised(self._folder, settings, settings.build)
