"""Settings of the index: how its vectors are clustered, stored and published."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mtmh.config.base import Decides, Positive, Settings


class PqConfig(Settings):
    """Product quantization: a vector becomes ``m`` numbers of ``bits`` bits each."""

    m: Positive = 16  # must divide the width of the embeddings
    bits: Annotated[int, Field(ge=4, le=12)] = 8


class MilvusConfig(Settings):
    """The address of Milvus; a token, if it wants one, comes from the environment variable MILVUS_TOKEN."""

    uri: str  # http://host:19530, or a file ending in .db for the embedded Milvus Lite
    # Names of collections begin so.
    collection: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")] = "mtmh"


class IndexConfig(Settings):
    """One inverted-file index a head."""

    backend: Literal["faiss", "milvus"] = "faiss"
    num_clusters: Positive | None = None  # None: about 4 * sqrt(items)
    train_sample: Positive = 262_144  # vectors that k-means sees
    iterations: Positive = 20
    storage: Literal["flat", "fp16", "sq8", "pq", "fastscan"] = "flat"  # of the vectors that a search compares
    pq: PqConfig = PqConfig()
    vectors: Literal["fp16", "fp32"] = "fp16"  # kept beside codes of sq8, pq, fastscan: to refine by, triggers, sorting
    refine_factor: Annotated[int, Field(ge=0)] = (
        4  # sq8, pq, fastscan: codes an answer that are compared again by vector
    )
    shard_items: Positive = 131_072  # filed at a time; the memory of a process follows it
    milvus: MilvusConfig | None = None
    # Tables of the tower that embeds items the index does not know; the preranker's own tower follows it.
    tower: Annotated[Literal["int8", "fp16"], Decides("index", "preranker")] = "int8"
    # The gate: a new index is not published where a head finds less than this share of the exact neighbours. With
    # retrieval.num_probes: auto the build takes the fewest probes that reach it.
    min_recall: Annotated[float, Field(ge=0.0, le=1.0), Decides()] = 0.95
    keep_versions: Annotated[Positive, Decides()] = 3  # published versions that stay on disk, for rollback

    @model_validator(mode="after")
    def _backend_fits(self) -> Self:
        if self.backend == "milvus" and self.milvus is None:
            raise ValueError("index.backend is milvus: say where it is by index.milvus.uri")
        if self.backend == "milvus" and self.storage != "flat":
            raise ValueError(f"index.storage is {self.storage}: a setting of faiss; with Milvus leave it flat")
        return self
