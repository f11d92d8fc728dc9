"""The common part of models of a history: a table of items, learned positions, and states that look like items."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

ITEM = "item_id"
# Standard deviation of first weights, as published: Adam takes steps of one size, which turn a small vector sooner.
_FIRST = 0.02


def build_item_collection(num_rows: int, dim: int, device: torch.device | str = "cpu") -> EmbeddingCollection:
    """A TorchRec table of ``num_rows`` item vectors of width ``dim``, one for each place of a sequence."""
    table = EmbeddingConfig(
        name=ITEM,
        feature_names=[ITEM],
        num_embeddings=num_rows,
        embedding_dim=dim,
        weight_init_min=-_FIRST * math.sqrt(3.0),
        weight_init_max=_FIRST * math.sqrt(3.0),
    )
    return EmbeddingCollection(tables=[table], device=torch.device(device))


class SequenceModel(nn.Module):
    """A history to a state at each of its places, which looks like the embedding of the item that comes next.

    The inputs and the item embeddings; `Hstu` and `SasRec` make states of them. States have unit length, so that all
    learn by the same loss.

    Args:
        items: table of item vectors, feature ``item_id``; any TorchRec sharder takes it.
        dim: width of the table ``D``.
        max_length: the longest history ``N``.
        num_heads: of each layer.
        dropout: of the inputs.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(self, items: EmbeddingCollection, dim: int, max_length: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{type(self).__name__}: expected a width that {num_heads} heads divide, got {dim}")
        self.items = items
        self.max_length = max_length
        self.positions = nn.Parameter(torch.empty(max_length, dim).normal_(std=_FIRST))
        self.dropout = nn.Dropout(dropout)

    def inputs(self, history: KeyedJaggedTensor, length: int) -> Tensor:
        """Item vectors and positions ``[B, length, D]`` of ``B`` histories; what is behind a history means nothing."""
        vectors = self.items(history)[ITEM].to_padded_dense(length)
        states: Tensor = self.dropout(vectors * math.sqrt(vectors.shape[-1]) + self.positions[:length])
        return states

    def embed(self, rows: Tensor) -> Tensor:
        """Unit-length vectors ``[R, D]`` of rows ``[R]`` of the item table."""
        lookup = KeyedJaggedTensor(keys=[ITEM], values=rows, lengths=torch.ones_like(rows))
        return functional.normalize(self.items(lookup)[ITEM].values(), dim=-1)
