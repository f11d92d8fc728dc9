"""The model of a recipe, and the model of a checkpoint in one process."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torchrec.types import DataType

from mtmh.artifacts import open_artifact
from mtmh.config import ModelConfig
from mtmh.config.recorded import recorded_section
from mtmh.data.schema import FeatureSchema
from mtmh.distributed.state_files import read_state
from mtmh.modules.content_input import ContentInput
from mtmh.modules.dense_nn import DenseNN
from mtmh.modules.id_tables import build_managed_ebc
from mtmh.modules.mtmh import MTMH
from mtmh.modules.sparse_nn import SparseNN, build_ebc
from mtmh.specs import Head, IdTable
from mtmh.training.checkpoint import MODEL, STATE

TABLE_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "bf16": DataType.BF16}


def build_model(
    model: ModelConfig, schema: FeatureSchema, device: torch.device, *, tables: torch.device | None = None
) -> MTMH:
    """An untrained model; the towers' values follow torch's random state.

    Args:
        model: widths and heads.
        schema: the features of the dataset.
        device: where the towers live.
        tables: where the embedding tables live if elsewhere: ``meta`` for a model that is to be sharded.

    Raises:
        ValueError: ``id_features`` or ``feature_dims`` names features that the dataset does not have.
    """
    there_are = [feature.name for feature in schema.id_features]
    for setting, wanted in (("id_features", model.id_features or []), ("feature_dims", model.feature_dims)):
        unknown = sorted(set(wanted) - set(there_are))
        if unknown:
            raise ValueError(
                f"model.{setting}: no id feature {', '.join(unknown)}; the dataset has {', '.join(there_are)}"
            )
    names = [name for name in there_are if model.id_features is None or name in model.id_features]
    dims = {name: model.feature_dims.get(name, model.embedding_dim) for name in names}
    data_type, where = TABLE_TYPES[model.embedding_dtype], tables or device
    rows = {
        feature.name: feature.num_rows
        for feature in schema.id_features
        if feature.name in names and feature.name not in model.id_tables
    }
    ebc = build_ebc(rows, {name: dims[name] for name in rows}, data_type, where) if rows else None
    raw = {name: IdTable(**table.model_dump()) for name, table in model.id_tables.items()}
    managed = build_managed_ebc(raw, {name: dims[name] for name in raw}, data_type, where) if raw else None
    heads = [Head(**head.model_dump()) for head in model.heads]
    with device:
        num_floats = len(schema.float_features) if model.float_features else 0
        dense_nn = DenseNN(num_floats, model.dense_hidden, model.dense_dim)
        content_nn = ContentInput(schema.content_dim, model.content_dim) if schema.content_dim else None
        sparse_nn = SparseNN(ebc, names, managed)
        return MTMH(sparse_nn, dense_nn, heads, model.head_hidden, model.head_dim, model.normalize, content_nn)


def load_model(checkpoint: Path) -> MTMH:
    """The model of a checkpoint, whole, on the CPU of this process; needs neither the dataset nor a process group.

    Args:
        checkpoint: folder of one checkpoint (``latest_checkpoint`` finds the newest).

    Returns:
        The trained model, in evaluation mode.

    Raises:
        ValueError: no complete checkpoint there, or its files do not hold exactly this model.
    """
    model = model_of(checkpoint, torch.device("cpu"))
    load_weights(model, checkpoint, distributed=False)
    return model.eval()


def model_of(checkpoint: Path, device: torch.device, *, tables: torch.device | None = None) -> MTMH:
    """The model that a checkpoint is of, untrained; `load_weights` fills it, before or after sharding.

    Args:
        checkpoint: folder of one checkpoint.
        device: where the towers live.
        tables: where the embedding tables live if elsewhere: ``meta`` for a model that is to be sharded.

    Raises:
        ValueError: no complete checkpoint there.
    """
    artifact = open_artifact(checkpoint, "checkpoint")
    schema = FeatureSchema.model_validate(artifact.summary["features"])
    return build_model(model_settings(checkpoint), schema, device, tables=tables)


def model_settings(checkpoint: Path) -> ModelConfig:
    """The model's settings as a checkpoint was trained with.

    Raises:
        ValueError: no complete checkpoint there.
    """
    return recorded_section(open_artifact(checkpoint, "checkpoint"), "model", ModelConfig)


def load_weights(model: nn.Module, checkpoint: Path, *, distributed: bool = True) -> None:
    """Fills a model in place with the weights of a checkpoint, whatever the ranks and the plan that wrote it.

    Args:
        model: the one of `model_of`, whole or as DistributedModelParallel has sharded it, alone or inside another
            module; on its own devices.
        checkpoint: folder of one checkpoint.
        distributed: all ranks call this together, each reads its shards; otherwise this process reads all.

    Raises:
        ValueError: no complete checkpoint there, or its files do not hold exactly this model.
    """
    artifact = open_artifact(checkpoint, "checkpoint")
    state = {f"{MODEL}{name}": value for name, value in model.state_dict().items()}
    read_state(state, artifact.path / STATE, prefixes=(MODEL,), distributed=distributed)
