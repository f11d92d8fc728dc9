"""Weights out of a safetensors file into a model that code has built."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn


def fill_weights(model: nn.Module, path: Path) -> None:
    """Fills a model in place; one tensor of the file is in memory at a time.

    Args:
        model: its state has the names of the file.
        path: written by ``safetensors.torch.save_file`` or ``save_model``.

    Raises:
        ValueError: the file is missing or damaged, or does not hold exactly the weights of this model.
    """
    state = model.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            differing = sorted(state.keys() ^ set(file.keys()))
            if differing:
                raise ValueError(f"{path}: not the weights of this model, differs in {', '.join(differing[:5])}")
            for name, tensor in state.items():
                stored = file.get_tensor(name)
                if stored.dtype != tensor.dtype or stored.shape != tensor.shape:
                    raise ValueError(
                        f"{path}: {name}: expected {tensor.dtype} of shape {tuple(tensor.shape)}, found "
                        f"{stored.dtype} of shape {tuple(stored.shape)}"
                    )
                tensor.copy_(stored)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: no readable safetensors: {error}") from None
