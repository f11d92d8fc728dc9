"""SASRec: a causal transformer over the items of a history, with softmax attention where HSTU has SiLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from .sequence_model import SequenceModel


class SasRec(SequenceModel):
    """A sequence model of softmax attention.

    The architecture of "Self-Attentive Sequential Recommendation" (1808.09781), the layers normalised before attention
    and feed-forward: learned positions, causal softmax attention, a feed-forward as wide as the state, no times,
    unit-length outputs.

    Args:
        items: table of item vectors, feature ``item_id``; any TorchRec sharder takes it.
        dim: width of the table ``D``.
        max_length: the longest history ``N``.
        num_layers: of attention.
        num_heads: of each layer.
        dropout: of inputs, attention and feed-forward.

    Example::

        >>> from mtmh.modules.sequence_model import build_item_collection
        >>> model = SasRec(build_item_collection(10, 8), dim=8, max_length=4, num_layers=1, num_heads=2)
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
        layer = nn.TransformerEncoderLayer(dim, num_heads, dim, dropout, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False)

    def forward(self, history: KeyedJaggedTensor, times: Tensor) -> Tensor:
        """Computes the states of ``B`` histories.

        Args:
            history: rows of the item table, feature ``item_id``, oldest first, at most ``max_length`` each.
            times: ``[B, N]``, ``N`` the longest history of the batch; their values mean nothing here.

        Returns:
            ``[B, N, D]`` of unit length; what is behind a history means nothing.
        """
        length = times.shape[1]
        states = self.inputs(history, length)
        # What is behind a history is later than all of it, so the causal mask hides that too.
        later = torch.ones(length, length, dtype=torch.bool, device=states.device).triu(1)
        return functional.normalize(self.layers(states, mask=later), dim=-1)
