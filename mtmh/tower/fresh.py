"""Embeds items that no index knows, from their raw features."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import faiss
import numpy as np
import pyarrow as pa

from mtmh.data.arrays import Vectors
from mtmh.data.schema import ITEM_ID
from mtmh.tower.artifact import TOWER
from mtmh.tower.item_features import ItemFeatures

if TYPE_CHECKING:
    from mtmh.modules.mtmh import MTMH

_CHUNK_ITEMS = 8192


class Tower:
    """Embeds items from their raw features.

    Loading and embedding are safe from several threads; the model is read, and TorchRec imported, at the first use.

    Args:
        folder: of an index artifact.

    Attributes:
        features: checks and encodes rows.

    Raises:
        ValueError: the index has no tower.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / TOWER
        self.features = ItemFeatures(self._folder)

    def embed(self, rows: pa.Table) -> dict[str, Vectors]:
        """Embeds N rows, at least one, that ``features.table`` laid out.

        Returns:
            head -> [N, D] float32, unit length.
        """
        parts = [self._embed(rows.slice(start, _CHUNK_ITEMS)) for start in range(0, len(rows), _CHUNK_ITEMS)]
        return {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}

    def _embed(self, rows: pa.Table) -> dict[str, Vectors]:
        threads = faiss.omp_get_max_threads()  # of this thread, before torch has its own number
        import torch

        from mtmh.tower.unseen import embed_unseen

        torch.set_num_threads(threads)
        inputs = (*self.features.encode(rows), self.features.content(rows))
        keys = [ITEM_ID, *(feature.name for feature in self.features.facts.id_features)]
        embedded = embed_unseen(self.model, keys, *map(torch.from_numpy, inputs))
        return {head: vectors.numpy() for head, vectors in embedded.items()}

    @cached_property
    def model(self) -> MTMH:
        """The model, in evaluation mode.

        Raises:
            ValueError: its files are missing, damaged, or not of these features.
        """
        from mtmh.tower.quantised import read_quantised, read_settings
        from mtmh.tower.unseen import ItemTowerSettings

        settings = read_settings(self._folder, ItemTowerSettings)
        self.features.check(settings.features)
        return read_quantised(self._folder, settings, settings.build)
