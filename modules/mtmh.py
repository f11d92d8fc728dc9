"""MTMH: one item tower, several heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.specs import Head

from .content_input import ContentInput
from .dense_nn import DenseNN
from .heads import HeadMLP
from .sparse_nn import SparseNN


class MTMH(nn.Module):
    """Item features to one embedding per head (MTMH paper, section 3.3).

    ``SparseNN`` and ``DenseNN`` outputs, and content embeddings if asked for, are concatenated and feed each head's
    MLP. Nearly all parameters sit in the shared ``SparseNN``. Which of the papers' models this is, is a matter of
    ``heads`` alone: see ``Head``.

    Args:
        sparse_nn: id features to ``[B, sparse_nn.out_dim]``.
        dense_nn: float features to ``[B, dense_nn.out_dim]``.
        heads: at least one, names distinct and usable as module names.
        head_hidden: hidden widths of each head's MLP; None: heads are what the towers give, side by side.
        head_dim: embedding width ``D`` of every head.
        normalize: unit-length embeddings.
        content_nn: content embeddings to ``[B, content_nn.out_dim]``; ``None``: they are no input.

    Attributes:
        head_dim: ``D``.

    Raises:
        ValueError: no heads, or two of one name.

    Example::

        >>> from mtmh.modules import build_ebc
        >>> sparse_nn = SparseNN(build_ebc({"item_id": 10}, {"item_id": 8}), ["item_id"])
        >>> heads = [Head("engagement"), Head("relevance", relevance_weight=0.5)]
        >>> model = MTMH(sparse_nn, DenseNN(2, [4], 4), heads, head_hidden=[16], head_dim=8)
        >>> ids = KeyedJaggedTensor(keys=["item_id"], values=torch.tensor([1, 2, 3]), lengths=torch.tensor([1, 1, 1]))
        >>> {name: tuple(embedding.shape) for name, embedding in model(ids, torch.zeros(3, 2)).items()}
        {'engagement': (3, 8), 'relevance': (3, 8)}
    """

    def __init__(
        self,
        sparse_nn: SparseNN,
        dense_nn: DenseNN,
        heads: Sequence[Head],
        head_hidden: list[int] | None,
        head_dim: int,
        normalize: bool = True,
        content_nn: ContentInput | None = None,
    ) -> None:
        super().__init__()
        names = [head.name for head in heads]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"MTMH needs at least one head and distinct names, got {names}")
        self.sparse_nn = sparse_nn
        self.dense_nn = dense_nn
        self.content_nn = content_nn
        self.heads = tuple(heads)
        self.head_dim = head_dim
        in_dim = sparse_nn.out_dim + dense_nn.out_dim + (content_nn.out_dim if content_nn else 0)
        self.head_mlps = nn.ModuleDict({name: HeadMLP(in_dim, head_hidden, head_dim, normalize) for name in names})

    def forward(self, sparse: KeyedJaggedTensor, dense: Tensor, content: Tensor | None = None) -> dict[str, Tensor]:
        """Computes the embeddings of ``B`` items.

        Args:
            sparse: ids of the features of ``sparse_nn.keys``, batch size ``B``.
            dense: ``[B, F]`` float features; their dtype is that of the towers' arithmetic, whatever the tables hold.
            content: ``[B, Dc]`` content embeddings, zeros where an item has none; needed with ``content_nn``.

        Returns:
            Head name to ``[B, D]``.

        Raises:
            ValueError: there is a ``content_nn`` and no ``content``.
        """
        return self.embeddings(self.features(sparse, dense, content))

    def features(self, sparse: KeyedJaggedTensor, dense: Tensor, content: Tensor | None = None) -> Tensor:
        """What all heads see of ``B`` items, ``[B, in_dim]``; arguments and errors as of `forward`."""
        pooled = self.sparse_nn(sparse).to(dense.dtype)
        parts = [pooled, self.dense_nn(dense)]
        if self.content_nn is not None:
            if content is None:
                raise ValueError("this model takes content embeddings in: give it content [B, Dc]")
            parts.append(self.content_nn(content))
        return torch.cat(parts, dim=1)

    def embeddings(self, features: Tensor) -> dict[str, Tensor]:
        """Head name to ``[B, D]``, of features ``[B, in_dim]``."""
        return {name: mlp(features) for name, mlp in self.head_mlps.items()}
