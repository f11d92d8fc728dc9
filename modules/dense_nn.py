"""DenseNN: float features of an item to a dense representation."""

from __future__ import annotations

from torch import Tensor, nn

from .mlp import hidden_layers


class DenseNN(nn.Module):
    """An MLP over the float features; every layer ends in a ReLU.

    Without float features it returns ``[B, 0]`` and has no parameters, so that callers need no special case.

    Args:
        num_features: number of float features ``F``, 0 allowed: those that the input may have are passed over.
        hidden: widths of the hidden layers, may be empty.
        out_dim: width of the output.

    Attributes:
        out_dim: width of the output: the argument, or 0 without features.

    Example::

        >>> import torch
        >>> DenseNN(num_features=3, hidden=[8], out_dim=4)(torch.zeros(2, 3)).shape
        torch.Size([2, 4])
        >>> DenseNN(num_features=0, hidden=[8], out_dim=4)(torch.zeros(2, 0)).shape
        torch.Size([2, 0])
    """

    def __init__(self, num_features: int, hidden: list[int], out_dim: int) -> None:
        super().__init__()
        if num_features < 0 or out_dim < 1 or min(hidden, default=1) < 1:
            raise ValueError(
                f"DenseNN: expected num_features >= 0 and widths >= 1, "
                f"got num_features={num_features}, hidden={hidden}, out_dim={out_dim}"
            )
        self.num_features = num_features
        self.out_dim = out_dim if num_features else 0
        widths = [num_features, *hidden, out_dim] if num_features else []
        self.mlp = nn.Sequential(*hidden_layers(widths))

    def forward(self, dense: Tensor) -> Tensor:
        """Maps ``[B, F]`` to ``[B, out_dim]``, same dtype."""
        out: Tensor = self.mlp(dense[:, : self.num_features])
        return out
