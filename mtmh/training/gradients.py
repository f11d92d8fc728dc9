"""Gradient norms of the towers of a model, each head's apart."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from torchrec.optim.keyed import CombinedOptimizer

HEADS = "head_mlps."  # part of the names of a head's weights


def tower_gradient_norms(optimizer: CombinedOptimizer) -> dict[str, float]:
    """Norms of the gradients of the last step.

    Args:
        optimizer: of `build_optimizer`.

    Returns:
        ``towers`` (all of them together), ``towers/dense_nn``, ``towers/HEAD``.
    """
    groups: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in dict(optimizer.optimizers)["towers"].params.items():
        if parameter.grad is not None:
            groups["towers"].append(parameter.grad)
            groups[f"towers/{_tower(name)}"].append(parameter.grad)
    return {name: float(torch.nn.utils.get_total_norm(gradients)) for name, gradients in groups.items()}


def _tower(name: str) -> str:
    _, found, rest = name.partition(HEADS)
    return rest.split(".")[0] if found else "dense_nn"
