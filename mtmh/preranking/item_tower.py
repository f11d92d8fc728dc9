"""The preranker's item tower for items that training has not seen: exported like the index's, fed with raw features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from torchrec.inference.modules import quantize_embeddings
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.artifacts import Artifact
from mtmh.config import Config, PrerankerConfig
from mtmh.config.recorded import recorded_section
from mtmh.data.dataset import Dataset
from mtmh.data.schema import FeatureSchema
from mtmh.modules.preranker import Preranker
from mtmh.preranking.inputs import ItemInputs
from mtmh.preranking.model_builder import build_preranker
from mtmh.tower.export import PROGRAM, TABLE_TYPES, TOWER, read_unseen, unseen_schema
from mtmh.tower.item_features import ItemFeatures, write_features
from mtmh.tower.program import export_program, load_program

Floats = npt.NDArray[np.float32]

_CHUNK_ITEMS = 8192


class ItemTower:
    """Vectors of items from their raw features and their embeddings under the heads.

    Loading and embedding are safe from several threads; the program is read at the first use.

    Args:
        folder: of a preranker artifact.

    Raises:
        ValueError: the artifact has no tower.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TOWER / PROGRAM
        self._features = ItemFeatures(folder / TOWER)

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
        if len(rows) == 1:  # the program takes two items or more
            return self._embed(pa.concat_tables([rows, rows]), np.concatenate([extra, extra]))[:1]
        with torch.no_grad():
            inputs = map(torch.from_numpy, (*self._features.encode(rows), extra))
            vectors: Floats = self._program(*inputs).numpy()
        return vectors

    @cached_property
    def _program(self) -> nn.Module:
        return load_program(self._path)


def write_item_tower(folder: Path, config: Config, dataset: Dataset, inputs: ItemInputs, checkpoint: Artifact) -> None:
    """Exports the item tower of a checkpoint into the folder of a preranker.

    Args:
        folder: of the artifact that is being written.
        config: ``index.tower`` is the precision of the tables.
        dataset: that the preranker was trained on.
        inputs: of its items.
        checkpoint: of the preranker.

    Raises:
        ValueError: the files of the checkpoint do not hold this model, or the dataset lacks what raw features need.
    """
    trained = recorded_section(checkpoint, "preranker", PrerankerConfig)
    schema = unseen_schema(FeatureSchema.model_validate(checkpoint.summary["features"]))
    facts = checkpoint.summary["preranker"]
    model = build_preranker(trained, schema, facts["frozen_dim"], facts["prior"], torch.device("cpu"))
    read_unseen(model, checkpoint.path, hidden_rows=1)
    (folder / TOWER).mkdir()
    write_features(folder / TOWER, dataset, hidden_rows=1)
    example = np.arange(min(2, dataset.num_items))
    sparse, dense, frozen = inputs.gather(example, np.ones(len(example), bool))
    keys = model.sparse_nn.keys
    model = quantize_embeddings(model.eval(), TABLE_TYPES[config.index.tower], inplace=True)
    tensors = (sparse.values(), sparse.lengths().reshape(len(keys), -1), dense, frozen)
    with torch.no_grad():
        export_program(_Program(model, keys), tensors, (0, 1, 0, 0), folder / TOWER / PROGRAM)


class _Program(nn.Module):
    """The item tower over plain tensors."""

    def __init__(self, model: Preranker, keys: list[str]) -> None:
        super().__init__()
        self.model = model
        self.keys = keys

    def forward(self, values: Tensor, lengths: Tensor, dense: Tensor, extra: Tensor) -> Tensor:
        vectors: Tensor = self.model(
            KeyedJaggedTensor(keys=self.keys, values=values, lengths=lengths.reshape(-1)), dense, extra
        )
        return vectors
