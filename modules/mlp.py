"""Hidden layers, of which every MLP of the models is made."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def hidden_layers(widths: Sequence[int]) -> list[nn.Module]:
    """Linear layers from each width to the next, a ReLU behind each.

    Args:
        widths: of the input, then of each layer; with one width, or none, there is no layer.

    Example::

        >>> nn.Sequential(*hidden_layers([3, 8]), nn.Linear(8, 2))
        Sequential(
          (0): Linear(in_features=3, out_features=8, bias=True)
          (1): ReLU()
          (2): Linear(in_features=8, out_features=2, bias=True)
        )
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return layers
