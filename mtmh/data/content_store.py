"""Content embeddings of the frozen teacher, one row an item of the catalogue, memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtmh.artifacts import Artifact, open_artifact
from mtmh.data.arrays import open_array
from mtmh.data.dataset import Dataset

EMBEDDINGS = Path("embeddings.npy")


class ContentEmbeddings:
    """Teacher embeddings of all items.

    Attributes:
        artifact: where they come from.
        embeddings: [I, Dc] float16 or float32, rows of unit length; a row of zeros: the item has no content.
    """

    def __init__(self, artifact: Artifact, embeddings: npt.NDArray[Any]) -> None:
        self.artifact = artifact
        self.embeddings = embeddings

    @property
    def dim(self) -> int:
        """Width ``Dc``."""
        return int(self.embeddings.shape[1])

    def gather(self, indices: npt.NDArray[np.integer[Any]]) -> Tensor:
        """Embeddings of some items.

        Args:
            indices: [U] item indices.

        Returns:
            [U, Dc] float32.
        """
        # PyTorch widens float16 about ten times faster than NumPy.
        return torch.from_numpy(np.take(self.embeddings, indices, axis=0)).float()


def open_content(path: Path, dataset: Dataset) -> ContentEmbeddings:
    """Opens the content artifact of a dataset.

    Args:
        path: the artifact; its manifest names the dataset as input ``dataset``.
        dataset: the dataset whose items the rows must be.

    Raises:
        ValueError: no content artifact, wrong dtype or shape, or made of another dataset.
    """
    artifact = open_artifact(path, "content")
    made_of = artifact.manifest.inputs.get("dataset")
    if made_of != dataset.artifact.manifest.digest:
        raise ValueError(
            f"{path}: these content embeddings belong to another dataset (digest {str(made_of)[:12]}) than "
            f"{dataset.artifact.path} (digest {dataset.artifact.manifest.digest[:12]}); run mtmh content embed again"
        )
    embeddings = open_array(path / EMBEDDINGS, (np.float16, np.float32), (dataset.num_items, None))
    return ContentEmbeddings(artifact, embeddings)
