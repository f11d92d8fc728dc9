"""The model of an index's tower, and what it makes of inputs."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.config import ModelConfig
from mtmh.modules.mtmh import MTMH
from mtmh.tower.quantised import TowerSettings
from mtmh.training.model_builder import build_model


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


@torch.no_grad()
def embed_unseen(
    model: MTMH, keys: list[str], values: Tensor, lengths: Tensor, dense: Tensor, content: Tensor
) -> dict[str, Tensor]:
    """Embeddings of unit length whatever the model's own setting; content of width 0 if the model takes none in."""
    sparse = KeyedJaggedTensor(keys=keys, values=values, lengths=lengths.reshape(-1))
    embedded = model(sparse, dense, content)
    return {head: nn.functional.normalize(vectors.float(), dim=1) for head, vectors in embedded.items()}
