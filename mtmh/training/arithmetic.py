"""The arithmetic of a run: how exact products are, and whether the order of sums is fixed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mtmh.config import TrainingConfig


@contextmanager
def arithmetic(training: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Computes by the run's settings until the block ends; what PyTorch had before is put back then.

    Args:
        training: ``matmul_precision`` and ``deterministic``.
        device: of the run; the CPU multiplies in float32 in any case, but for what the loss rounds by itself.
    """
    precision, deterministic = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda" and training.matmul_precision != "highest":
        torch.set_float32_matmul_precision("high")
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic)
