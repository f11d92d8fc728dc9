"""Content embeddings as an input of the tower: whether a model takes them in, and those that it was trained with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mtmh.artifacts import Artifact
from mtmh.config import ModelConfig
from mtmh.data.content_store import ContentEmbeddings, open_content
from mtmh.data.dataset import Dataset
from mtmh.data.schema import FeatureSchema
from mtmh.modules.mtmh import MTMH

_FITTED_ITEMS = 65_536


def with_content(schema: FeatureSchema, model: ModelConfig, content: ContentEmbeddings | None) -> FeatureSchema:
    """The features of a dataset, and the content embeddings if they are there and the model takes them."""
    dim = content.dim if content is not None and model.content_dim else 0
    return schema.model_copy(update={"content_dim": dim})


def fit_content(model: MTMH, content: ContentEmbeddings, seed: int) -> None:
    """Finds the principal components for a fresh model that takes content in, on a sample of the catalogue."""
    if model.content_nn is not None:
        rows = np.random.default_rng(seed).permutation(len(content.embeddings))[:_FITTED_ITEMS]
        model.content_nn.fit(content.gather(np.sort(rows)))


def content_input(checkpoint: Artifact, path: Path, dataset: Dataset) -> ContentEmbeddings | None:
    """The content embeddings that the model of a checkpoint takes in; ``None``: it takes none.

    Args:
        checkpoint: of the model.
        path: the content artifact.
        dataset: whose items are embedded.

    Raises:
        ValueError: there is none, or it is another one than the model was trained with.
    """
    if not FeatureSchema.model_validate(checkpoint.summary["features"]).content_dim:
        return None
    content = open_content(path, dataset)
    if content.artifact.manifest.digest != checkpoint.manifest.inputs["content"]:
        raise ValueError(f"{path}: other content embeddings than {checkpoint.path} was trained with; train again")
    return content
