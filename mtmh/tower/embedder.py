"""A trained model that turns items into embeddings, whole or sharded over ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mtmh.config import CommunicationConfig, ShardingConfig
from mtmh.data.arrays import Items, Vectors
from mtmh.data.content_store import ContentEmbeddings
from mtmh.data.item_table import ItemTable
from mtmh.distributed.ranks import Ranks
from mtmh.distributed.sharding import shard
from mtmh.modules.mtmh import MTMH
from mtmh.training.model_builder import load_model, load_weights, model_of


@dataclass(frozen=True)
class Embedder:
    """A trained model that embeds items.

    Attributes:
        model: maps item features to embeddings; whole, or sharded, and then all ranks call it together.
        heads: names, in the order of the model.
        dim: D.
        device: where the model takes its inputs.
        raw: features that the model takes as raw ids.
        content: embeddings of the teacher, if the model takes them in.
    """

    model: nn.Module
    heads: list[str]
    dim: int
    device: torch.device
    raw: frozenset[str] = frozenset()
    content: ContentEmbeddings | None = None

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        sharding: ShardingConfig,
        ranks: Ranks,
        content: ContentEmbeddings | None = None,
        *,
        items_per_step: int,
    ) -> Embedder:
        """Reads a checkpoint: whole in a CPU process alone, its tables sharded over several ranks or on GPUs.

        The model is the checkpoint's. How it is sharded is free, whatever it was trained with.

        Args:
            checkpoint: folder of one checkpoint.
            sharding: constraints of the planner; embeddings travel between ranks as fp32, whatever it says.
            ranks: this process among the others.
            content: embeddings of the teacher, for a model that takes them in.
            items_per_step: that all ranks embed together, at most.

        Raises:
            ValueError: no complete checkpoint there, ``sharding`` names a table that the model does not have, or the
                tables do not fit.
        """
        if ranks.world_size == 1 and ranks.device.type == "cpu":
            whole = load_model(checkpoint)
            heads, dim, raw = _interface(whole)
            return cls(whole, heads, dim, ranks.device, raw, content)
        model = model_of(checkpoint, ranks.device, tables=torch.device("meta"))
        heads, dim, raw = _interface(model)
        update: dict[str, Any] = {"communication": CommunicationConfig()}
        if ranks.device.type == "cpu":  # all tables are in host memory, where a run on GPUs had some
            update["uvm_caching"] = {}
        sharded, _ = shard(model, sharding.model_copy(update=update), ranks, items_per_step=items_per_step)
        load_weights(sharded, checkpoint)
        return cls(sharded.eval(), heads, dim, ranks.device, raw, content)

    def embed(self, table: ItemTable, items: Items) -> dict[str, Vectors]:
        """Embeds items.

        Args:
            table: their features.
            items: [N] item indices.

        Returns:
            head -> [N, D] float32 of unit length, whatever the model's own setting: search is by cosine.

        Raises:
            ValueError: an embedding is not finite.
        """
        sparse, dense = table.gather(items, raw=self.raw)
        with torch.no_grad():  # FBGEMM's lookup of a sharded table has no form for inference mode
            content = None if self.content is None else self.content.gather(items).to(self.device).float()
            embedded = self.model(sparse.to(self.device), dense.to(self.device), content)
            units = {
                head: torch.nn.functional.normalize(rows.float(), dim=1).cpu().numpy()
                for head, rows in embedded.items()
            }
        for head, unit in units.items():
            finite = np.isfinite(unit).all(axis=1)
            if not finite.all():
                item = items[int(finite.argmin())]
                raise ValueError(f"head {head}: the embedding of item index {item} is not finite numbers")
        return units


def _interface(model: MTMH) -> tuple[list[str], int, frozenset[str]]:
    """Heads, width and raw features of a model, which sharding hides."""
    return [head.name for head in model.heads], model.head_dim, model.sparse_nn.raw_keys
