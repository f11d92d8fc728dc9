"""Writes the preranker's item tower for items that training has not seen, like the index's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from mtmh.artifacts import Artifact
from mtmh.config import PrerankerConfig, PrerankerTrainingConfig
from mtmh.config.recorded import recorded_section
from mtmh.data.dataset import Dataset
from mtmh.data.schema import FeatureSchema
from mtmh.modules.preranker import Preranker
from mtmh.preranking.model_builder import build_preranker
from mtmh.tower.artifact import TOWER
from mtmh.tower.export import read_unseen, unseen_schema
from mtmh.tower.item_features import write_features
from mtmh.tower.quantised import TowerSettings, write_quantised


class PrerankerTowerSettings(TowerSettings):
    """Settings from which the preranker is built."""

    preranker: PrerankerConfig
    frozen_dim: Annotated[int, Field(ge=0)]
    prior: list[float]

    def build(self, device: torch.device) -> Preranker:
        """The preranker at arbitrary weights."""
        return build_preranker(self.preranker, self.features, self.frozen_dim, self.prior, device)


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
