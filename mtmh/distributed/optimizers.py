"""Adagrad in three places: in the tables' backward, on the towers, on data-parallel tables; and gradient norms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from mtmh.config import TrainingConfig
from mtmh.distributed.content_table import CONTENT_ROWS

EPSILON = 1e-8
TABLE_KEY = ".embedding_bags."  # part of the name of every table's weight, sharded or not
HEAD_KEY = "head_mlps."  # and of every weight of a head


def fuse_optimizer(model: nn.Module, training: TrainingConfig, *, skip: Set[str]) -> None:
    """Has the tables update themselves in the backward pass; call it before sharding.

    Args:
        model: holds the EmbeddingBagCollections.
        training: which Adagrad, and its rate.
        skip: names of data-parallel tables, whose kernel has no fused optimizer (`build_optimizer` trains them).
    """
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection):
            if CONTENT_ROWS in module.embedding_bags:  # an optimizer without state, which is never called
                _apply_optimizer_in_backward(torch.optim.SGD, module.parameters(), {"lr": 0.0})
                continue
            weights = [bag.weight for name, bag in module.embedding_bags.items() if name not in skip]
            _apply_optimizer_in_backward(
                _table_optimizer(training), weights, {"lr": training.learning_rate, "eps": EPSILON}
            )


def build_optimizer(sharded: DistributedModelParallel, training: TrainingConfig) -> CombinedOptimizer:
    """One optimizer over fused tables, data-parallel tables and towers, with the keys ``tables`` and ``towers``.

    A model without towers, whose tables alone are the embeddings, has no ``towers``.
    """
    rest = {name: p for name, p in in_backward_optimizer_filter(sharded.named_parameters()) if p.requires_grad}
    copies = {name: parameter for name, parameter in rest.items() if TABLE_KEY in name}
    towers = {name: parameter for name, parameter in rest.items() if TABLE_KEY not in name}
    parts: list[tuple[str, KeyedOptimizer]] = [("tables", sharded.fused_optimizer)]
    if copies:
        table_optimizer = _table_optimizer(training)
        parts.append(
            (
                "copies",
                KeyedOptimizerWrapper(
                    copies, lambda weights: table_optimizer(weights, lr=training.learning_rate, eps=EPSILON)
                ),
            )
        )
    if towers:
        parts.append(
            ("towers", KeyedOptimizerWrapper(towers, lambda p: torch.optim.Adagrad(p, lr=training.dense_learning_rate)))
        )
    return CombinedOptimizer(parts)


def set_learning_rates(
    optimizer: CombinedOptimizer, training: TrainingConfig, step: int, *, continued: bool = False
) -> None:
    """Sets the rates of the step after ``step`` finished ones: linear over ``warmup_steps``, then constant.

    A function of the step alone, so a resumed run needs no schedule state. The fused kernel takes the rate over in
    ``zero_grad``, which the pipeline calls before each forward. A continued run follows ``training.continuation``.
    """
    scale = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    scale *= training.continuation.learning_rate_scale if continued else 1.0
    frozen = continued and training.continuation.freeze_towers
    for name, part in optimizer.optimizers:
        rate = training.learning_rate
        if name == "towers":
            rate = 0.0 if frozen else training.dense_learning_rate
        for group in part.param_groups:
            group["lr"] = scale * rate


def _table_optimizer(training: TrainingConfig) -> Callable[..., Any]:
    return RowWiseAdagrad if training.optimizer == "rowwise_adagrad" else torch.optim.Adagrad


def tower_gradient_norms(optimizer: CombinedOptimizer) -> dict[str, float]:
    """Norms of the gradients of the last step.

    Args:
        optimizer: of `build_optimizer`.

    Returns:
        ``towers`` (all of them together), ``towers/dense_nn``, ``towers/HEAD``, ``towers/loss`` (learned weights);
        nothing of a model without towers.
    """
    groups: dict[str, list[Tensor]] = defaultdict(list)
    towers = dict(optimizer.optimizers).get("towers")
    for name, parameter in towers.params.items() if towers is not None else ():
        if parameter.grad is not None:
            groups["towers"].append(parameter.grad)
            groups[f"towers/{_tower(name)}"].append(parameter.grad)
    return {name: float(torch.nn.utils.get_total_norm(gradients)) for name, gradients in groups.items()}


def _tower(name: str) -> str:
    if name.endswith("loss.log_variances"):
        return "loss"
    _, found, rest = name.partition(HEAD_KEY)
    return rest.split(".")[0] if found else "dense_nn"
