"""The item tower for serving: quantised, exported as one program, and fed with raw features.

The program holds no rows of ``item_id`` but the one that stands for an unseen item: it embeds items that training has
not seen, whatever the size of the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from torchrec.inference.modules import quantize_embeddings
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.artifacts import Artifact, open_artifact
from mtmh.config import Config, ModelConfig
from mtmh.config.recorded import recorded_section
from mtmh.data.dataset import Dataset
from mtmh.data.schema import ITEM_ID, FeatureSchema
from mtmh.distributed.state_files import read_state, stored_rows
from mtmh.modules.mtmh import MTMH
from mtmh.tower.artifact import TowerFacts
from mtmh.tower.item_features import ItemFeatures, write_features
from mtmh.tower.program import export_program, load_program
from mtmh.training.checkpoint import MODEL, STATE
from mtmh.training.model_builder import build_model

TOWER = Path("tower")
PROGRAM = "tower.pt2"

TABLE_TYPES = {"int8": torch.qint8, "fp16": torch.float16}
_COMPARED_ITEMS = 1000
_CHUNK_ITEMS = 8192

Vectors = npt.NDArray[np.float32]


class Tower:
    """Embeds items from their raw features.

    Loading and embedding are safe from several threads; the program is read at the first use.

    Args:
        folder: of an index artifact.

    Attributes:
        features: checks and encodes rows.

    Raises:
        ValueError: the index has no tower.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TOWER / PROGRAM
        self.features = ItemFeatures(folder / TOWER)

    def embed(self, rows: pa.Table) -> dict[str, Vectors]:
        """Embeds N rows, at least one, that ``features.table`` laid out.

        Returns:
            head -> [N, D] float32, unit length.
        """
        parts = [self._embed(rows.slice(start, _CHUNK_ITEMS)) for start in range(0, len(rows), _CHUNK_ITEMS)]
        return {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}

    def _embed(self, rows: pa.Table) -> dict[str, Vectors]:
        # The program takes two items or more: export takes sizes of 0 and 1 for constants.
        padded = pa.concat_tables([rows, rows]) if len(rows) == 1 else rows
        with torch.no_grad():
            embedded: Mapping[str, Tensor] = self._program(*map(torch.from_numpy, self.features.encode(padded)))
        return {head: vectors[: len(rows)].numpy() for head, vectors in embedded.items()}

    @cached_property
    def _program(self) -> nn.Module:
        return load_program(self._path)


def write_tower(folder: Path, config: Config, dataset: Dataset, embeddings: Artifact) -> TowerFacts | None:
    """Exports the tower that made the embeddings into the folder of an index.

    Args:
        folder: of the index that is being written.
        config: names the checkpoints; ``index.tower`` is the precision of the tables.
        dataset: that the model was trained on.
        embeddings: of the index; they name their checkpoint.

    Returns:
        What was measured; None: the embeddings come from no checkpoint, so there is no tower.

    Raises:
        ValueError: the checkpoint is not there any more.
    """
    digest = embeddings.manifest.inputs.get("checkpoint")
    if digest is None:
        return None
    model, hidden_rows = unseen_tower(_find_checkpoint(config.model_dir("checkpoints"), digest))
    (folder / TOWER).mkdir()
    write_features(folder / TOWER, dataset, hidden_rows)
    keys = model.sparse_nn.keys
    sample = np.sort(
        np.random.default_rng(config.seed).choice(
            dataset.num_items, min(_COMPARED_ITEMS, dataset.num_items), replace=False
        )
    )
    raw = () if hidden_rows else (ITEM_ID,)
    sparse, dense = dataset.item_table.gather(sample, hide_id=np.ones(len(sample), bool), raw=raw)
    inputs = (sparse.values(), sparse.lengths().reshape(len(keys), -1), dense)
    trained = _Program(model, keys)
    with torch.no_grad():
        expected = trained(*inputs)
        quantised = _Program(quantize_embeddings(model, TABLE_TYPES[config.index.tower], inplace=True), keys)
        found = export_program(quantised, inputs, (0, 1, 0), folder / TOWER / PROGRAM)(*inputs)
    cosines = {head: (found[head] * expected[head]).sum(dim=1) for head in expected}
    return TowerFacts(
        tables=config.index.tower,
        num_items=len(sample),
        mean_cosine={head: float(cosine.mean()) for head, cosine in cosines.items()},
        least_cosine={head: float(cosine.min()) for head, cosine in cosines.items()},
    )


def unseen_tower(checkpoint: Path) -> tuple[MTMH, int]:
    """The trained tower for items that training has not seen: of the table of ``item_id`` it has row 0 alone.

    Args:
        checkpoint: folder of one checkpoint.

    Returns:
        The tower, and how many values of ``item_id`` stand for an unseen item: one, which is row 0; or none, where raw
        ids take rows as they come and one without a row gives zeros.
    """
    artifact = open_artifact(checkpoint, "checkpoint")
    schema = FeatureSchema.model_validate(artifact.summary["features"])
    settings = recorded_section(artifact, "model", ModelConfig)
    hidden_rows = 0 if ITEM_ID in settings.id_tables else 1
    settings = settings.model_copy(update={"id_tables": {}})
    model = build_model(settings, unseen_schema(schema), torch.device("cpu"))
    read_unseen(model, checkpoint, hidden_rows)
    return model.eval(), hidden_rows


def unseen_schema(schema: FeatureSchema) -> FeatureSchema:
    """The features of a model whose table of ``item_id`` has row 0 alone."""
    small = [
        feature.model_copy(update={"num_rows": 1}) if feature.name == ITEM_ID else feature
        for feature in schema.id_features
    ]
    return schema.model_copy(update={"id_features": small})


def read_unseen(model: nn.Module, checkpoint: Path, hidden_rows: int) -> None:
    """Fills a model of `unseen_schema` with the weights of a checkpoint; without ``hidden_rows`` the one row stays."""
    state = {f"{MODEL}{name}": value for name, value in model.state_dict().items()}
    (item_table,) = [name for name in state if name.endswith(f"embedding_bags.{ITEM_ID}.weight")]
    row = state.pop(item_table)
    if hidden_rows:
        row.copy_(stored_rows(checkpoint / STATE, item_table, 0, 1))
    read_state(state, checkpoint / STATE, prefixes=(), distributed=False)


class _Program(nn.Module):
    """The tower over plain tensors, unit length whatever the model's own setting."""

    def __init__(self, model: nn.Module, keys: list[str]) -> None:
        super().__init__()
        self.model = model
        self.keys = keys

    def forward(self, values: Tensor, lengths: Tensor, dense: Tensor) -> dict[str, Tensor]:
        sparse = KeyedJaggedTensor(keys=self.keys, values=values, lengths=lengths.reshape(-1))
        embedded = self.model(sparse, dense)
        return {head: nn.functional.normalize(vectors.float(), dim=1) for head, vectors in embedded.items()}


def _find_checkpoint(root: Path, digest: str) -> Path:
    for path in sorted(root.glob("step-*"), reverse=True):
        try:
            if open_artifact(path, "checkpoint").manifest.digest == digest:
                return path
        except ValueError:  # damaged, or being removed: not the one
            continue
    raise ValueError(f"{root}: the checkpoint that the embeddings were made with is gone; run mtmh embed again")
