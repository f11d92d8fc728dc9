"""GradNorm: weights of losses that keep their pulls on what the heads share in balance (1711.02257)."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtmh.config import GradNormConfig
from mtmh.distributed.ranks import gather_numbers


class GradNorm(nn.Module):
    """Learned weights of all losses, which are part of the state of a run.

    With ``G_i = w_i |dL_i/dW|`` and ``r_i`` the loss relative to its first value, over the mean of those of all losses,
    each weight takes a step against the gradient of ``sum_i |G_i - mean(G) r_i^alpha|``, the right side held constant,
    in units of ``mean(G)``. A loss that has come down less than others so pulls more. The weights keep their sum, and
    none falls below a thousandth of it.

    ``W`` is a linear layer that would hand on what the heads share, at the identity: ``dL/dW`` is the sum over items of
    gradient times features, whatever ranks and copies the items are dealt out to. The tables themselves are sharded,
    and learn inside the backward.

    Args:
        weights: [3, H] at the start, 0: there is no such loss.
        settings: of the steps.

    Attributes:
        weights: [3, H] now.
        first: [3, H] losses when they were first looked at; 0 before.
    """

    weights: Tensor
    first: Tensor

    def __init__(self, weights: Tensor, settings: GradNormConfig) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("weights", weights.clone())
        self.register_buffer("first", torch.zeros_like(weights))

    def is_due(self, step: int) -> bool:
        """True if the weights are to be looked at in this step."""
        return step % self.settings.every == 0

    @torch.no_grad()
    def update(self, losses: Tensor, gradients: list[Tensor], features: Tensor) -> None:
        """Takes one step; all ranks call it together and get the same.

        Args:
            losses: [3, H] this rank's share of the means.
            gradients: of each loss that there is, row by row: [U, F] with respect to the features.
            features: [U, F] what the heads share, of this rank's items.
        """
        on = self.weights > 0.0
        pulls = torch.stack([gradient.T @ features for gradient in gradients])
        dist.all_reduce(pulls)
        plain = pulls.flatten(1).norm(dim=1).double()
        shares = torch.tensor(gather_numbers(losses[on].double()), dtype=torch.float64, device=plain.device)
        now, weights = shares.sum(dim=0), self.weights[on].double()
        norms = weights * plain
        if not (norms + now).isfinite().all():  # the run ends, and says why
            return
        self.first[on] = torch.where(self.first[on] > 0.0, self.first[on], now.to(self.first))
        first = self.first[on].double()
        relative = torch.where(first > 0.0, now / first, 1.0)  # no first value: nothing had this loss yet
        rates = relative / relative.mean().clamp_min(1e-12)
        target = norms.mean() * rates**self.settings.alpha
        direction = (norms - target).sign() * plain / norms.mean().clamp_min(1e-30)
        total = weights.sum()
        moved = (weights - self.settings.learning_rate * direction).clamp_min(1e-3 * total)
        self.weights[on] = (moved * total / moved.sum()).to(self.weights)

    def by_loss(self) -> list[list[float]]:
        """[H, 3] weights."""
        return cast(list[list[float]], self.weights.T.tolist())
