"""The trained part of each backbone: nothing, its last layers, low-rank adapters or all of it; and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import nn

from mtmh.config import BackboneConfig, EncoderConfig, EncoderTrainingConfig
from mtmh.content.teacher import Teacher, TowerName
from mtmh.distributed.state_files import State
from mtmh.training.checkpoint import MODEL, OPTIMIZER

FINAL_RATE = 0.05  # of the full learning rate, at the end of the cosine


def prepare_tuning(teacher: Teacher, config: EncoderConfig) -> None:
    """Freezes what is not to be trained, adds adapters, turns gradient checkpointing on; changes the model in place.

    Raises:
        ValueError: a backbone has no layers to choose from, or adapters are asked for without the package.
    """
    for tower, backbone in teacher.backbones.items():
        settings: BackboneConfig = getattr(config, tower)
        encoder = backbone.encoder
        encoder.requires_grad_(settings.tune == "full")
        if settings.tune == "last":
            _unfreeze_last(encoder.model, settings.tune_layers, tower)
        elif settings.tune == "lora":
            encoder.model = _add_adapters(encoder.model, settings.lora_rank, tower)
        if config.training.gradient_checkpointing and settings.tune != "frozen":
            cast(Any, encoder.model).activation_checkpointing_enable()


def set_training_mode(teacher: Teacher) -> None:
    """Training mode, but for frozen backbones: those see no dropout."""
    teacher.model.train()
    for backbone in teacher.backbones.values():
        if not any(parameter.requires_grad for parameter in backbone.encoder.parameters()):
            backbone.encoder.eval()


def merge_adapters(teacher: Teacher) -> None:
    """Adds the adapters, if any, to the weights they adapt; the model is a plain one again."""
    for backbone in teacher.backbones.values():
        if hasattr(backbone.encoder.model, "merge_and_unload"):
            backbone.encoder.model = cast(Any, backbone.encoder.model).merge_and_unload()


def trained_parameters(teacher: Teacher) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in teacher.model.named_parameters() if parameter.requires_grad}


def encoder_optimizer(teacher: Teacher, config: EncoderTrainingConfig) -> torch.optim.AdamW:
    """AdamW: a learning rate for the new layers, another for the backbones; vectors (biases, norms) do not decay."""
    of_backbone = {id(p) for backbone in teacher.backbones.values() for p in backbone.encoder.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in trained_parameters(teacher).values():
        rate = config.backbone_learning_rate if id(parameter) in of_backbone else config.learning_rate
        groups.setdefault((rate, config.weight_decay if parameter.dim() > 1 else 0.0), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": p, "lr": rate, "full_rate": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    )
    for parameter in trained_parameters(teacher).values():
        # As AdamW makes it at the first step; a checkpoint can only fill what is there.
        optimizer.state[parameter] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def encoder_state(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> State:
    """All tensors that training changes, by name; they share memory with model and optimizer."""
    state = {f"{MODEL}{name}": parameter.data for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        state |= {f"{OPTIMIZER}{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    return state


def set_learning_rate(optimizer: torch.optim.Optimizer, config: EncoderTrainingConfig, step: int, steps: int) -> None:
    """Linear warm-up, then half a cosine; a function of the step alone, so that a resumed run needs no more."""
    if step < config.warmup_steps:
        factor = (step + 1) / config.warmup_steps
    else:
        done = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
        factor = FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + math.cos(math.pi * done))
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * factor


def _unfreeze_last(model: nn.Module, num_layers: int, tower: TowerName) -> None:
    """The last layers, and what stands behind them: final norm, pooler, projection."""
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not stacks or len(stacks[0][1]) < num_layers:
        found = len(stacks[0][1]) if stacks else 0
        raise ValueError(
            f"content.encoder.{tower}.tune_layers: {num_layers} asked for, {type(model).__name__} has {found} layers"
        )
    name, layers = stacks[0]
    first = f"{name}.{len(layers) - num_layers}."
    # Parameters come in the order of their registration, which is that of the computation.
    reached = False
    for parameter_name, parameter in model.named_parameters():
        reached = reached or parameter_name.startswith(first)
        parameter.requires_grad_(reached)
    assert reached


def _add_adapters(model: nn.Module, rank: int, tower: TowerName) -> nn.Module:
    if find_spec("peft") is None:
        raise ValueError(f"content.encoder.{tower}.tune: lora needs the package peft: pip install 'mtmh[lora]'")
    peft: Any = import_module("peft")  # an extra: nothing else needs it
    settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
    return cast(nn.Module, peft.get_peft_model(model, settings))
