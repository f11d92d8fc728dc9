"""The MLP of a head, which computes its item embedding."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .mlp import hidden_layers


class HeadMLP(nn.Module):
    """The MLP of one head: linear layers with ReLU between them, unit-length output if asked for.

    Args:
        in_dim: width of the shared item representation.
        hidden: widths of the hidden layers, may be empty; None: there are no layers, not even the last one, and the
            representation is the embedding.
        out_dim: width ``D`` of the embedding; without layers that of the representation.
        normalize: scale each output row to unit length, so that a dot product is a cosine.

    Example::

        >>> import torch
        >>> HeadMLP(in_dim=6, hidden=[8], out_dim=4, normalize=True)(torch.ones(3, 6)).shape
        torch.Size([3, 4])
    """

    def __init__(self, in_dim: int, hidden: list[int] | None, out_dim: int, normalize: bool = True) -> None:
        super().__init__()
        if in_dim < 1 or out_dim < 1 or min(hidden or [1]) < 1:
            raise ValueError(f"head widths must be at least 1, got in_dim={in_dim}, hidden={hidden}, out_dim={out_dim}")
        if hidden is None and in_dim != out_dim:
            raise ValueError(
                f"a head without layers hands on what it is given: expected out_dim={in_dim}, got {out_dim}"
            )
        widths = [in_dim, *(hidden or [])]
        layers = [] if hidden is None else [*hidden_layers(widths), nn.Linear(widths[-1], out_dim)]
        self.mlp = nn.Sequential(*layers)
        self.normalize = normalize

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[B, in_dim]`` to ``[B, out_dim]``, same dtype."""
        embedding: Tensor = self.mlp(features)
        return functional.normalize(embedding, dim=-1) if self.normalize else embedding
