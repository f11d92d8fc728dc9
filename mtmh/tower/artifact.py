"""Files of an embeddings artifact, the summary in its manifest, and the facts of a quantised tower."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mtmh.config.model import HeadName

TOWER = Path("tower")  # in an index, or a preranker: the tower that embeds items from their raw features


def vectors_file(head: str) -> Path:
    """[I, D] float32 unit-length embeddings of one head."""
    return Path(f"{head}.npy")


class DeltaSummary(BaseModel):
    """Facts of the embeddings kept from the period before; drift is 1 - cosine to what the new model gives."""

    model_config = ConfigDict(extra="forbid")

    num_kept: int
    num_sampled: int
    mean_drift: float
    max_drift: float


class EmbeddingsSummary(BaseModel):
    """The ``summary`` of an embeddings manifest; heads in the order of the model, the engagement head first."""

    model_config = ConfigDict(extra="forbid")

    heads: list[HeadName]
    dim: int
    num_items: int
    delta: DeltaSummary | None = None  # None: all items were embedded


class TowerFacts(BaseModel):
    """Measurements of the build: cosine of the quantised tower to the trained one, over sampled items as if unseen.

    Attributes:
        tables: precision of the embedding tables.
        num_items: of the sample.
        mean_cosine: by head.
        least_cosine: by head.
    """

    model_config = ConfigDict(extra="forbid")

    tables: Literal["int8", "fp16"]
    num_items: int
    mean_cosine: dict[str, float]
    least_cosine: dict[str, float]
