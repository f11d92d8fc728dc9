"""ContentInput: the frozen content embedding of an item as an input of the tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ContentInput(nn.Module):
    """Principal components of content embeddings; a learned vector where an item has none.

    The components are fixed (`fit`), all divided by one number, so that their mean square is 1; what is made of them
    the heads learn.

    Args:
        in_dim: width ``Dc`` of the content embeddings.
        out_dim: number of components ``P``; at most ``in_dim`` are kept.

    Attributes:
        out_dim: width of the output.

    Example::

        >>> content_nn = ContentInput(in_dim=6, out_dim=3)
        >>> content_nn.fit(torch.randn(100, 6))
        >>> content_nn(torch.randn(2, 6)).shape
        torch.Size([2, 3])
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        if in_dim < 1 or out_dim < 1:
            raise ValueError(f"ContentInput: expected widths of at least 1, got in_dim={in_dim}, out_dim={out_dim}")
        self.out_dim = min(in_dim, out_dim)
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("projection", torch.eye(in_dim, self.out_dim))
        self.missing = nn.Parameter(torch.zeros(self.out_dim))

    @torch.no_grad()
    def fit(self, content: Tensor) -> None:
        """Takes the principal components of content embeddings [N, Dc]; rows of zeros are left out.

        Raises:
            ValueError: there is no other row.
        """
        known = content[content.any(dim=1)].double()
        if len(known) == 0:
            raise ValueError("no item has a content embedding: set model.content_dim=0")
        centred = known - known.mean(dim=0)
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(known))  # ascending
        kept, spread = directions[:, -self.out_dim :].flip(1), variances[-self.out_dim :].mean().clamp_min(1e-12).sqrt()
        # The sign of a direction is the library's whim: fixed, so that every machine has the same.
        largest = kept.abs().argmax(dim=0, keepdim=True)
        self.mean.copy_(known.mean(dim=0))
        self.projection.copy_(kept * kept.gather(0, largest).sign() / spread)

    def forward(self, content: Tensor) -> Tensor:
        """Maps embeddings ``[B, Dc]``, a row of zeros for an item without content, to ``[B, P]``."""
        known = (content != 0.0).any(dim=1, keepdim=True)
        return torch.where(known, (content - self.mean) @ self.projection, self.missing)
