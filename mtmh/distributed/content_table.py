"""The teacher's embeddings as a table that does not learn, cut by rows over the ranks and looked up with the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType
from torchrec.types import DataType

CONTENT_ROWS = "_content"  # the feature, one row of the table an item, and the table; id features begin with a letter


class ContentTable(nn.Module):
    """One frozen row an item of the catalogue; made without memory, for `shard` to spread over the ranks.

    No gradient reaches the rows, no optimizer state goes with them, and no checkpoint holds them (`training_state`).

    Args:
        num_items: rows.
        dim: Dc, of any size; the table's rows are filled up to a multiple of 4.
        data_type: of the rows, ``DataType.FP16`` or ``DataType.FP32``.
    """

    def __init__(self, num_items: int, dim: int, data_type: DataType) -> None:
        super().__init__()
        self._dim = dim
        table = EmbeddingBagConfig(
            name=CONTENT_ROWS,
            feature_names=[CONTENT_ROWS],
            num_embeddings=num_items,
            embedding_dim=-(-dim // 4) * 4,
            pooling=PoolingType.SUM,
            data_type=data_type,
        )
        self.table = EmbeddingBagCollection([table], device=torch.device("meta"))

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Rows of ``B`` items, [B, Dc] float32; an item without a row in the feature `CONTENT_ROWS` has zeros."""
        # Detached, so that nothing comes back to the table, whose kernel would update it in the backward pass.
        rows: Tensor = self.table(features).values().detach()[:, : self._dim]
        return rows
