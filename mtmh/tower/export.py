"""The item tower for serving: quantised, small, and fed with raw features.

It holds no rows of ``item_id`` but the one that stands for an unseen item: it embeds items that training has
not seen, whatever the size of the catalogue.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import model_validator
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.artifacts import Artifact, open_artifact
from mtmh.config import ModelConfig
from mtmh.config.recorded import recorded_section
from mtmh.data.arrays import Vectors
from mtmh.data.dataset import Dataset
from mtmh.data.schema import ITEM_ID, FeatureSchema
from mtmh.distributed.state_files import read_state, stored_rows
from mtmh.modules.mtmh import MTMH
from mtmh.tower.artifact import TowerFacts
from mtmh.tower.item_features import ItemFeatures, write_features
from mtmh.tower.quantised import TowerSettings, read_quantised, read_settings, write_quantised
from mtmh.training.checkpoint import MODEL, STATE
from mtmh.training.content import content_input
from mtmh.training.model_builder import build_model

TOWER = Path("tower")
_COMPARED_ITEMS = 1000
_CHUNK_ITEMS = 8192


class ItemTowerSettings(TowerSettings):
    """The parts of the index's tower."""

    model: ModelConfig

    @model_validator(mode="after")
    def _has_plain_tables(self) -> Self:
        if self.model.id_tables:
            raise ValueError("a tower has no tables of raw ids")
        return self

    def build(self, device: torch.device) -> MTMH:
        """The model at arbitrary weights."""
        return build_model(self.model, self.features, device)


class Tower:
    """Embeds items from their raw features.

    Loading and embedding are safe from several threads; the model is read at the first use.

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
        inputs = (*self.features.encode(rows), self.features.content(rows))
        keys = [ITEM_ID, *(feature.name for feature in self.features.facts.id_features)]
        embedded = _embed(self._model, keys, *map(torch.from_numpy, inputs))
        return {head: vectors.numpy() for head, vectors in embedded.items()}

    @cached_property
    def _model(self) -> MTMH:
        settings = read_settings(self._folder, ItemTowerSettings)
        self.features.check(settings.features)
        return read_quantised(self._folder, settings, settings.build)


def write_tower(
    folder: Path,
    checkpoints: Path,
    content_dir: Path,
    dataset: Dataset,
    embeddings: Artifact,
    *,
    tables: Literal["int8", "fp16"],
    seed: int,
) -> TowerFacts | None:
    """Exports the tower that made the embeddings into the folder of an index.

    Args:
        folder: of the index that is being written.
        checkpoints: of the model.
        content_dir: embeddings of the teacher, for a model that takes them in.
        dataset: that the model was trained on.
        embeddings: of the index; they name their checkpoint.
        tables: their precision.
        seed: of the sample of items that is compared.

    Returns:
        What was measured; None: the embeddings come from no checkpoint, so there is no tower.

    Raises:
        ValueError: the checkpoint is not there any more.
    """
    digest = embeddings.manifest.inputs.get("checkpoint")
    if digest is None:
        return None
    checkpoint = _find_checkpoint(checkpoints, digest)
    model, settings, hidden_rows = _unseen_tower(checkpoint, tables)
    content = content_input(open_artifact(checkpoint, "checkpoint"), content_dir, dataset)
    (folder / TOWER).mkdir()
    write_features(folder / TOWER, dataset, hidden_rows, content.dim if content else 0)
    sample = np.sort(
        np.random.default_rng(seed).choice(dataset.num_items, min(_COMPARED_ITEMS, dataset.num_items), replace=False)
    )
    raw = () if hidden_rows else (ITEM_ID,)
    sparse, dense = dataset.item_table.gather(sample, hide_id=np.ones(len(sample), bool), raw=raw)
    inputs = (sparse.values(), sparse.lengths(), dense, content.gather(sample) if content else dense[:, :0])
    keys = sparse.keys()
    expected = _embed(model, keys, *inputs)
    write_quantised(folder / TOWER, model, settings)
    found = _embed(Tower(folder)._model, keys, *inputs)
    cosines = {head: (found[head] * expected[head]).sum(dim=1) for head in expected}
    return TowerFacts(
        tables=tables,
        num_items=len(sample),
        mean_cosine={head: float(cosine.mean()) for head, cosine in cosines.items()},
        least_cosine={head: float(cosine.min()) for head, cosine in cosines.items()},
    )


def _unseen_tower(checkpoint: Path, tables: Literal["int8", "fp16"]) -> tuple[MTMH, ItemTowerSettings, int]:
    """The trained tower for items that training has not seen: of the table of ``item_id`` it has row 0 alone.

    Args:
        checkpoint: folder of one checkpoint.
        tables: their precision when they are written.

    Returns:
        The tower, what it is built from, and how many values of ``item_id`` stand for an unseen item: one, which is
        row 0; or none, where raw ids take rows as they come and one without a row gives zeros.
    """
    artifact = open_artifact(checkpoint, "checkpoint")
    schema = FeatureSchema.model_validate(artifact.summary["features"])
    trained = recorded_section(artifact, "model", ModelConfig)
    hidden_rows = 0 if ITEM_ID in trained.id_tables else 1
    settings = ItemTowerSettings(
        features=unseen_schema(schema), tables=tables, model=trained.model_copy(update={"id_tables": {}})
    )
    model = settings.build(torch.device("cpu"))
    read_unseen(model, checkpoint, hidden_rows)
    return model.eval(), settings, hidden_rows


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


@torch.no_grad()
def _embed(
    model: MTMH, keys: list[str], values: Tensor, lengths: Tensor, dense: Tensor, content: Tensor
) -> dict[str, Tensor]:
    """Embeddings of unit length whatever the model's own setting; content of width 0 if the model takes none in."""
    sparse = KeyedJaggedTensor(keys=keys, values=values, lengths=lengths.reshape(-1))
    embedded = model(sparse, dense, content)
    return {head: nn.functional.normalize(vectors.float(), dim=1) for head, vectors in embedded.items()}


def _find_checkpoint(root: Path, digest: str) -> Path:
    for path in sorted(root.glob("step-*"), reverse=True):
        try:
            if open_artifact(path, "checkpoint").manifest.digest == digest:
                return path
        except ValueError:  # damaged, or being removed: not the one
            continue
    raise ValueError(f"{root}: the checkpoint that the embeddings were made with is gone; run mtmh embed again")
