"""Gradient norms of a run: of each part of the towers, and of each table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor  # type: ignore[attr-defined]
from torchrec.optim.keyed import CombinedOptimizer

from mtmh.distributed.optimizers import TABLE_KEY
from mtmh.distributed.sharding import local_shards

HEADS = "head_mlps."  # part of the names of a head's weights
SUMS = ("momentum1", "sum")  # what the optimizers call Adagrad's sum of squared gradients


class GradientNorms:
    """Reads the norms once a window of steps.

    The towers' are those of the last step. A table's gradient is gone as soon as the backward pass has used it, but
    Adagrad has added its square to a sum, so a table's norm is the root mean square over the steps since the last
    reading: exact but for rounding, at the cost of reading that sum. Too small for a table of raw ids that evicts: the
    sums of evicted rows are gone.

    Args:
        optimizer: of `build_optimizer`.
    """

    def __init__(self, optimizer: CombinedOptimizer) -> None:
        self._optimizer = optimizer
        self._towers = dict(optimizer.optimizers)["towers"].params
        self._sums = self._adagrad_sums()

    def read(self, steps: int) -> dict[str, float]:
        """The norms; all ranks call it together.

        Args:
            steps: since the last reading, 1 or more.

        Returns:
            ``towers`` (all of them together), ``towers/dense_nn``, ``towers/HEAD``, ``tables/NAME``.
        """
        groups: dict[str, list[Tensor]] = defaultdict(list)
        for name, parameter in self._towers.items():
            if parameter.grad is not None:
                groups["towers"].append(parameter.grad)
                groups[f"towers/{_tower(name)}"].append(parameter.grad)
        norms = {name: _norm(gradients) for name, gradients in groups.items()}
        before, self._sums = self._sums, self._adagrad_sums()
        for name, total in self._sums.items():
            norms[f"tables/{name}"] = (max(0.0, total - before.get(name, 0.0)) / steps) ** 0.5
        return norms

    def _adagrad_sums(self) -> dict[str, float]:
        """Sum of squared gradients of each table since the beginning, over all ranks."""
        own: dict[str, float] = defaultdict(float)
        parameters = self._optimizer.params
        for key, entries in self._optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                if TABLE_KEY in key and name.rpartition(".")[2] in SUMS:
                    # Row-wise Adagrad adds the mean over the row. Whole copies are counted once, not once a rank.
                    width = parameters[key].size().numel() // value.size().numel()
                    copies = 1 if isinstance(value, ShardedTensor) else dist.get_world_size()
                    total = sum(float(piece.sum(dtype=torch.float64)) for _, piece in local_shards(value))
                    own[key.split(TABLE_KEY)[1].removesuffix(".weight")] += total * width / copies
        parts: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, dict(own))
        return {name: sum(part.get(name, 0.0) for part in parts) for name in sorted(set().union(*parts))}


def _tower(name: str) -> str:
    _, found, rest = name.partition(HEADS)
    return rest.split(".")[0] if found else "dense_nn"


def _norm(gradients: Iterable[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])))
