"""Towers with quantised tables on disk: settings as JSON, weights in safetensors; the model itself is built by code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torchrec.inference.modules import quantize_embeddings
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantisedBags
from torchrec.types import DataType

from mtmh.data.schema import FeatureSchema
from mtmh.modules.mtmh import MTMH
from mtmh.modules.preranker import Preranker
from mtmh.tower.weights import fill_weights

SETTINGS = "model.json"
WEIGHTS = "model.safetensors"

_QUANTISED = {"int8": (torch.qint8, DataType.INT8), "fp16": (torch.float16, DataType.FP16)}

Model = TypeVar("Model", MTMH, Preranker)
S = TypeVar("S", bound="TowerSettings")


class TowerSettings(BaseModel):
    """The settings that a tower is built from; each kind of tower adds its own.

    Attributes:
        features: that it takes in, and the rows of their tables.
        tables: precision of these.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: FeatureSchema
    tables: Literal["int8", "fp16"]


def write_quantised(folder: Path, model: MTMH | Preranker, settings: TowerSettings) -> None:
    """Quantises the tables of a model in place and writes it.

    Args:
        folder: of the tower.
        model: in evaluation mode.
        settings: that build this model.
    """
    quantize_embeddings(model, _QUANTISED[settings.tables][0], inplace=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / SETTINGS).write_text(settings.model_dump_json(indent=2))


def read_settings(folder: Path, kind: type[S]) -> S:
    """The settings of a tower.

    Raises:
        ValueError: there are none, or not such as this mtmh writes.
    """
    path = folder / SETTINGS
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: missing; build the index, or train the preranker, again") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{path}: not the settings of a tower: {field}: {first['msg']}") from None


def read_quantised(folder: Path, settings: TowerSettings, build: Callable[[torch.device], Model]) -> Model:
    """Builds the model of a tower and fills it; the tables are never in memory in full precision.

    Args:
        folder: that `write_quantised` wrote.
        settings: from there.
        build: makes the model on a device.

    Returns:
        The model, in evaluation mode; safe to use from several threads.

    Raises:
        ValueError: the files are missing, damaged, or not of this model.
    """
    path = folder / WEIGHTS
    model = build(torch.device("meta"))  # takes no memory, draws no random numbers
    needed = sum(tensor.numel() for tensor in model.state_dict().values())
    if not path.is_file() or path.stat().st_size < needed:  # before memory is taken for it
        raise ValueError(f"{path}: missing, or too small for the {needed} values that {SETTINGS} speaks of")
    bags = model.sparse_nn.ebc
    assert isinstance(bags, EmbeddingBagCollection)
    model.sparse_nn.ebc = None
    model.to_empty(device="cpu")
    tables = [replace(table, data_type=_QUANTISED[settings.tables][1]) for table in bags.embedding_bag_configs()]
    model.sparse_nn.ebc = QuantisedBags(tables, is_weighted=False, device=torch.device("cpu"))
    fill_weights(model, path)
    return model.eval()
