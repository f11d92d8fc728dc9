"""The item tower for serving: quantised, small, and fed with raw features.

It holds no rows of ``item_id`` but the one that stands for an unseen item: it embeds items that training has
not seen, whatever the size of the catalogue.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from mtmh.artifacts import Artifact, open_artifact
from mtmh.config import ModelConfig
from mtmh.config.recorded import recorded_section
from mtmh.data.dataset import Dataset
from mtmh.data.schema import ITEM_ID, FeatureSchema
from mtmh.distributed.state_files import StoredTable, read_state
from mtmh.modules.mtmh import MTMH
from mtmh.tower.artifact import TOWER, TowerFacts
from mtmh.tower.fresh import Tower
from mtmh.tower.item_features import write_features
from mtmh.tower.quantised import write_quantised
from mtmh.tower.unseen import ItemTowerSettings, embed_unseen
from mtmh.training.checkpoint import MODEL, STATE
from mtmh.training.content import content_input
from mtmh.training.newest import newest_first

_COMPARED_ITEMS = 1000


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
    inputs = (sparse.values(), sparse.lengths(), dense, content.gather(sample).float() if content else dense[:, :0])
    keys = sparse.keys()
    expected = embed_unseen(model, keys, *inputs)
    write_quantised(folder / TOWER, model, settings)
    found = embed_unseen(Tower(folder).model, keys, *inputs)
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
        row.copy_(StoredTable(checkpoint / STATE, item_table).rows(0, 1))
    read_state(state, checkpoint / STATE, prefixes=(), distributed=False)


def _find_checkpoint(root: Path, digest: str) -> Path:
    for path in newest_first(root):
        try:
            if open_artifact(path, "checkpoint").manifest.digest == digest:
                return path
        except ValueError:  # damaged, or being removed: not the one
            continue
    raise ValueError(f"{root}: the checkpoint that the embeddings were made with is gone; run mtmh embed again")
