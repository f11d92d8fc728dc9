"""Content embeddings in training: as an input of the tower, and as what distillation compares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchrec.types import DataType

from mtmh.artifacts import Artifact
from mtmh.config import LossConfig, ModelConfig
from mtmh.data.content_store import ContentEmbeddings, open_content
from mtmh.data.dataset import Dataset
from mtmh.data.schema import FeatureSchema
from mtmh.distributed.content_table import ContentTable
from mtmh.distributed.ranks import Ranks, on_first
from mtmh.distributed.sharding import local_shards
from mtmh.modules.mtmh import MTMH

_FITTED_ITEMS = 65_536
_ROWS_AT_A_TIME = 1 << 18


def with_content(schema: FeatureSchema, model: ModelConfig, content: ContentEmbeddings | None) -> FeatureSchema:
    """The features of a dataset, and the content embeddings if they are there and the model takes them."""
    dim = content.dim if content is not None and model.content_dim else 0
    return schema.model_copy(update={"content_dim": dim})


def fit_content(model: MTMH, content: ContentEmbeddings, seed: int) -> None:
    """Finds the principal components for a fresh model that takes content in, on a sample of the catalogue."""
    if model.content_nn is not None:
        model.content_nn.fit(_sample(content, seed))


def content_table(content: ContentEmbeddings) -> ContentTable:
    """The table that takes the place of the mapped embeddings; `fill_content_table` fills it once it is sharded."""
    num_items, dim = content.embeddings.shape
    half = content.embeddings.dtype == np.float16
    return ContentTable(num_items, dim, DataType.FP16 if half else DataType.FP32)


@torch.no_grad()
def fill_content_table(table: nn.Module, content: ContentEmbeddings) -> None:
    """Reads the rows of this rank from the file, some at a time; other rows are never touched."""
    (weight,) = table.state_dict().values()
    for (first, column), piece in local_shards(weight):
        assert column == 0
        piece.zero_()  # where rows are filled up
        for start in range(0, len(piece), _ROWS_AT_A_TIME):
            stop = min(start + _ROWS_AT_A_TIME, len(piece))
            rows = torch.from_numpy(np.array(content.embeddings[first + start : first + stop]))
            piece[start:stop, : content.dim] = rows.to(piece)


def teacher_directions(
    content: ContentEmbeddings, model: ModelConfig, loss: LossConfig, seed: int, ranks: Ranks
) -> Tensor | None:
    """Directions of the teacher's embeddings that distillation compares, the same on all ranks; None: all, or nothing.

    See `principal_directions`.
    """
    distils = any(head.relevance_weight > 0.0 for head in model.heads)
    if not distils or any(head.semantic_weight > 0.0 for head in model.heads):
        return None
    directions = on_first(ranks, lambda: principal_directions(content, loss.teacher_dim, seed))
    return None if directions is None else torch.from_numpy(directions).to(ranks.device)


def principal_directions(content: ContentEmbeddings, dim: int, seed: int) -> npt.NDArray[np.float32] | None:
    """Directions [Dc, dim] that keep most of the dot products; None: ``dim`` is 0, or the embeddings are no wider.

    Not centred, unlike the tower's input: a softmax of dot products is to stay what it is. They come from a sample of
    the catalogue that follows the seed.
    """
    if not 0 < dim < content.dim:
        return None
    rows = _sample(content, seed).double()
    _, directions = torch.linalg.eigh(rows.T @ rows)  # ascending
    return np.asarray(directions[:, -dim:].float())


def _sample(content: ContentEmbeddings, seed: int) -> Tensor:
    rows = np.random.default_rng(seed).permutation(len(content.embeddings))[:_FITTED_ITEMS]
    return content.gather(np.sort(rows)).float()


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
