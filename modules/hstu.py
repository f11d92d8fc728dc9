"""HSTU: a sequence model over the items of a history, whose item embeddings can be compared with each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from .sequence_model import ITEM, SequenceModel

_EPSILON = 1e-6
_LOG_BASE = 0.301  # time gaps fall into buckets by log(gap) / 0.301, as in the published code


class RelativeBias(nn.Module):
    """What a place adds to the attention logit of an earlier one, by their distance in places and in time.

    The time of a query is that of the event after it, when its answer was wanted; the last one has its own.

    Args:
        max_length: the longest sequence ``N``.
        num_buckets: of time gaps.

    Example::

        >>> RelativeBias(max_length=4)(torch.tensor([[0, 10, 500]]), torch.tensor([3])).shape
        torch.Size([1, 3, 3])
    """

    def __init__(self, max_length: int, num_buckets: int = 128) -> None:
        super().__init__()
        self.max_length = max_length
        self.num_buckets = num_buckets
        self.by_place = nn.Parameter(torch.empty(2 * max_length - 1).normal_(std=0.02))
        self.by_time = nn.Parameter(torch.empty(num_buckets + 1).normal_(std=0.02))

    def forward(self, times: Tensor, lengths: Tensor) -> Tensor:
        """Maps times ``[B, N]`` int64 of histories of ``lengths`` ``[B]`` to biases ``[B, N, N]``, query by key."""
        place = torch.arange(times.shape[1], device=times.device)
        distance = place[:, None] - place[None, :] + self.max_length - 1
        after = torch.minimum(place + 1, (lengths[:, None] - 1).clamp(min=0))
        asked = times.gather(1, after)
        gaps = (asked[:, :, None] - times[:, None, :]).abs().clamp(min=1).double().log() / _LOG_BASE
        return self.by_place[distance] + self.by_time[gaps.long().clamp(max=self.num_buckets)]


class HstuLayer(nn.Module):
    """Pointwise aggregated attention: SiLU in the place of softmax, gated by the query's own projection.

    Args:
        dim: width ``D``.
        num_heads: of attention.
        head_dim: width of queries, keys, values and gates of a head.
        max_length: by which sums over keys are divided.
        dropout: of the gated values.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.max_length = max_length
        self.project = nn.Parameter(torch.empty(dim, 4 * num_heads * head_dim).normal_(std=0.02))
        self.out = nn.Linear(num_heads * head_dim, dim)
        nn.init.xavier_uniform_(self.out.weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor, bias: Tensor, allowed: Tensor) -> Tensor:
        """Maps ``[B, N, D]`` to the same shape.

        Args:
            inputs: ``[B, N, D]``.
            bias: ``[B, N, N]`` of `RelativeBias`.
            allowed: ``[B, N, N]`` bool, keys that a query may see.
        """
        batch, length, dim = inputs.shape
        projected = functional.silu(functional.layer_norm(inputs, (dim,), eps=_EPSILON) @ self.project)
        gate, value, query, key = (
            part.reshape(batch, length, self.num_heads, -1) for part in projected.chunk(4, dim=-1)
        )
        logits = torch.einsum("bnhd,bmhd->bhnm", query, key) + bias[:, None]
        weights = functional.silu(logits) / self.max_length * allowed[:, None]
        mixed = torch.einsum("bhnm,bmhd->bnhd", weights, value).reshape(batch, length, -1)
        gated = gate.reshape(batch, length, -1) * functional.layer_norm(mixed, mixed.shape[-1:], eps=_EPSILON)
        out: Tensor = self.out(self.dropout(gated))
        return out + inputs


class Hstu(SequenceModel):
    """A sequence model of pointwise attention.

    The architecture of "Actions Speak Louder than Words" (2402.17152): pointwise attention with a relative bias of
    places and times, causal, learned positions, unit-length outputs.

    Args:
        items: table of item vectors, feature ``item_id``; any TorchRec sharder takes it.
        dim: width of the table ``D``.
        max_length: the longest history ``N``.
        num_layers: of attention.
        num_heads: of each layer.
        dropout: of inputs and gated values.

    Example::

        >>> from mtmh.modules.sequence_model import build_item_collection
        >>> model = Hstu(build_item_collection(10, 8), dim=8, max_length=4, num_layers=1, num_heads=2)
        >>> history = KeyedJaggedTensor(keys=["item_id"], values=torch.tensor([1, 2, 3]), lengths=torch.tensor([2, 1]))
        >>> model(history, torch.zeros(2, 2, dtype=torch.int64)).shape
        torch.Size([2, 2, 8])
    """

    def __init__(
        self,
        items: EmbeddingCollection,
        dim: int,
        max_length: int,
        num_layers: int = 2,
        num_heads: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(items, dim, max_length, num_heads, dropout)
        self.bias = RelativeBias(max_length)
        self.layers = nn.ModuleList(
            HstuLayer(dim, num_heads, dim // num_heads, max_length, dropout) for _ in range(num_layers)
        )

    def forward(self, history: KeyedJaggedTensor, times: Tensor) -> Tensor:
        """Computes the states of ``B`` histories.

        Args:
            history: rows of the item table, feature ``item_id``, oldest first, at most ``max_length`` each.
            times: ``[B, N]`` int64 of the events, ``N`` the longest history of the batch; anything behind a history.

        Returns:
            ``[B, N, D]`` of unit length; what is behind a history means nothing.
        """
        length = times.shape[1]
        place = torch.arange(length, device=times.device)
        lengths = history[ITEM].lengths()
        filled = place < lengths[:, None]
        states = self.inputs(history, length) * filled[..., None]
        allowed = (place[:, None] >= place[None, :]) & filled[:, None, :]
        bias = self.bias(times, lengths)
        for layer in self.layers:
            states = layer(states, bias, allowed) * filled[..., None]
        return functional.normalize(states, dim=-1)
