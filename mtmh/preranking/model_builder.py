"""The model of a preranker, untrained or of a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from mtmh.artifacts import open_artifact
from mtmh.config import PrerankerConfig
from mtmh.config.recorded import recorded_section
from mtmh.data.dataset import Dataset
from mtmh.data.schema import FeatureSchema
from mtmh.modules.dense_nn import DenseNN
from mtmh.modules.preranker import Preranker
from mtmh.modules.sparse_nn import SparseNN, build_ebc
from mtmh.preranking.labels import Labels
from mtmh.training.model_builder import load_weights


def build_preranker(
    settings: PrerankerConfig,
    schema: FeatureSchema,
    frozen_dim: int,
    prior: list[float],
    device: torch.device,
    *,
    tables: torch.device | None = None,
) -> Preranker:
    """An untrained preranker; the towers' values follow torch's random state.

    Args:
        settings: the widths.
        schema: the features of the dataset.
        frozen_dim: width of the frozen inputs.
        prior: see `priors`.
        device: where the towers live.
        tables: where the embedding tables live if elsewhere: ``meta`` for a model that is to be sharded.
    """
    names = [feature.name for feature in schema.id_features]
    ebc = build_ebc(
        rows={feature.name: feature.num_rows for feature in schema.id_features},
        dims=dict.fromkeys(names, settings.embedding_dim),
        device=tables or device,
    )
    with device:
        dense_nn = DenseNN(len(schema.float_features), settings.dense_hidden, settings.dense_dim)
        return Preranker(
            SparseNN(ebc, names),
            dense_nn,
            frozen_dim,
            settings.hidden,
            settings.dim,
            settings.temperature,
            prior,
        )


def priors(dataset: Dataset, labels: Labels) -> list[float]:
    """Logits to start from: any known item is engaged with next, and how often each label is true in T1."""
    reader = dataset.history_reader(labels=True)
    fulfilled, events = np.zeros(len(labels.names)), 0
    for group in range(reader.num_groups):
        histories = reader.read(group)
        fulfilled += labels(histories).sum(axis=0)
        events += len(histories.items)
    known = int(np.count_nonzero(dataset.item_table.train_count))
    rates = (fulfilled + 1.0) / (events + 2.0)
    return [-math.log(known), *(float(np.log(rate / (1.0 - rate))) for rate in rates)]


def load_preranker(checkpoint: Path) -> Preranker:
    """The model of a checkpoint, whole, on the CPU of this process; needs neither the dataset nor a process group.

    Raises:
        ValueError: no complete checkpoint there, or its files do not hold exactly this model.
    """
    artifact = open_artifact(checkpoint, "checkpoint")
    settings = recorded_section(artifact, "preranker", PrerankerConfig)
    schema = FeatureSchema.model_validate(artifact.summary["features"])
    facts = artifact.summary["preranker"]
    model = build_preranker(settings, schema, facts["frozen_dim"], facts["prior"], torch.device("cpu"))
    load_weights(model, checkpoint, distributed=False)
    return model.eval()
