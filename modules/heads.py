"""Heads: what each one learns (its loss weights) and the MLP that computes its item embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from .mlp import hidden_layers


@dataclass(frozen=True)
class Head:
    """One head of the model and its loss, ``engagement_weight * L_e + relevance_weight * L_r + semantic_weight * L_s``.

    ``L_e`` and ``L_r`` are those of MTMH (equation 3), ``L_s`` the semantic task of the related-video paper (equation
    5). A list of heads is all that tells the papers' models apart::

        single task    [Head("engagement")]
        MTSH           [Head("multi_task", relevance_weight=0.5)]
        STMH           [Head("engagement"), Head("relevance", engagement_weight=0.0, relevance_weight=1.0)]
        MTMH           [Head("engagement"), Head("relevance", relevance_weight=0.5)]
        related video  [Head("multi_task", semantic_weight=500.0)]

    Raises:
        ValueError: a weight is negative or not finite, or all are zero.
    """

    name: str
    engagement_weight: float = 1.0
    relevance_weight: float = 0.0
    semantic_weight: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.engagement_weight, self.relevance_weight, self.semantic_weight)
        if not all(math.isfinite(weight) and weight >= 0.0 for weight in weights):
            raise ValueError(f"head {self.name!r}: loss weights must be finite and at least 0, got {weights}")
        if not any(weights):
            raise ValueError(
                f"head {self.name!r} has no loss: give it an engagement_weight, a relevance_weight or a semantic_weight"
            )


class HeadMLP(nn.Module):
    """The MLP of one head: linear layers with ReLU between them, unit-length output if asked for.

    Args:
        in_dim: width of the shared item representation.
        hidden: widths of the hidden layers, may be empty.
        out_dim: width ``D`` of the embedding.
        normalize: scale each output row to unit length, so that a dot product is a cosine.

    Example::

        >>> import torch
        >>> HeadMLP(in_dim=6, hidden=[8], out_dim=4, normalize=True)(torch.ones(3, 6)).shape
        torch.Size([3, 4])
    """

    def __init__(self, in_dim: int, hidden: list[int], out_dim: int, normalize: bool = True) -> None:
        super().__init__()
        if in_dim < 1 or out_dim < 1 or min(hidden, default=1) < 1:
            raise ValueError(f"head widths must be at least 1, got in_dim={in_dim}, hidden={hidden}, out_dim={out_dim}")
        widths = [in_dim, *hidden]
        self.mlp = nn.Sequential(*hidden_layers(widths), nn.Linear(widths[-1], out_dim))
        self.normalize = normalize

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[B, in_dim]`` to ``[B, out_dim]``, same dtype."""
        embedding: Tensor = self.mlp(features)
        return functional.normalize(embedding, dim=-1) if self.normalize else embedding
