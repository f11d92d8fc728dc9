"""One score out of many kinds of evidence about a candidate."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Combination(nn.Module):
    """A weighted sum of standardised evidence, and what a small network adds to it.

    The weights begin at zero and so does what the network adds: evidence that says nothing stays without weight.

    Args:
        num_inputs: kinds of evidence ``F``.
        hidden: width of the network; 0: none.

    Example::

        >>> combination = Combination(3, 8)
        >>> combination(torch.rand(2, 5, 3)).shape
        torch.Size([2, 5])
    """

    def __init__(self, num_inputs: int, hidden: int) -> None:
        super().__init__()
        if num_inputs < 1 or hidden < 0:
            raise ValueError(f"Combination: expected inputs and a width not below 0, got {num_inputs} and {hidden}")
        self.register_buffer("mean", torch.zeros(num_inputs))
        self.register_buffer("scale", torch.ones(num_inputs))
        self.linear = nn.Linear(num_inputs, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.network: nn.Module | None = None
        if hidden:
            last = nn.Linear(hidden, 1, bias=False)
            nn.init.zeros_(last.weight)
            self.network = nn.Sequential(nn.Linear(num_inputs, hidden), nn.ReLU(), last)

    def standardise(self, evidence: Tensor) -> None:
        """Takes mean and spread of evidence [N, F]; what does not vary becomes zero."""
        self.mean = evidence.mean(dim=0)
        spread = evidence.std(dim=0, correction=0)
        self.scale = torch.where(spread > 1e-6, 1.0 / spread.clamp(min=1e-6), 0.0)

    def forward(self, evidence: Tensor) -> Tensor:
        """Logits [...] of candidates with evidence [..., F], each kind clipped at six spreads from its mean."""
        inputs = ((evidence - self.mean) * self.scale).clamp(-6.0, 6.0)
        logits: Tensor = self.linear(inputs)
        if self.network is not None:
            logits = logits + self.network(inputs)
        return logits.squeeze(-1)
