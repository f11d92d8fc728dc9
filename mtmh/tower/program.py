"""A part of a model as one program on disk, by torch.export: written, and read without running anything of the file."""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def export_program(model: nn.Module, inputs: tuple[Tensor, ...], sized: Sequence[int], path: Path) -> nn.Module:
    """Writes the program of a model and returns it.

    Args:
        model: maps tensors to what it maps them to.
        inputs: an example; at least two along each dimension that may have another size.
        sized: for each input the dimension that may.
        path: of the file.
    """
    sizes = tuple({dimension: torch.export.Dim.DYNAMIC} for dimension in sized)
    exported = torch.export.export(model, inputs, dynamic_shapes=sizes, strict=False)
    torch.export.save(exported, path)
    return exported.module()


def load_program(path: Path) -> nn.Module:
    """Reads a program that `export_program` wrote.

    Raises:
        ValueError: the file is damaged, or asks for more than tensors and operators.
    """
    _refuse_pickle(path)
    logger = logging.getLogger("torch._export.serde.serialize")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of symbols that the program does not use
    try:
        return torch.export.load(path).module()
    finally:
        logger.setLevel(level)


def _refuse_pickle(path: Path) -> None:
    """torch.export.load unpickles, and runs compiled code, as an archive asks it to; a tower asks for neither.

    Raises:
        ValueError: this one does, or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if "/aotinductor/" in name:
                    raise ValueError(f"{path}: {name} is compiled code; refusing to read it")
                if name.endswith("_config.json"):
                    entries: Any = json.loads(archive.read(name))["config"].values()
                    plain = all(not entry["use_pickle"] and entry["tensor_meta"] is not None for entry in entries)
                    if not plain:
                        raise ValueError(f"{path}: {name} asks for pickled objects; refusing to read it")
                if "/sample_inputs/" in name:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable tower: {error}") from None
