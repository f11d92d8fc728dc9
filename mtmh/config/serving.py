"""Settings of the index, of retrieval and of its evaluation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mtmh.config.base import Positive, Settings


class PqConfig(Settings):
    """Product quantization: a vector becomes ``m`` numbers of ``bits`` bits each."""

    m: Positive = 16  # must divide the width of the embeddings
    bits: Annotated[int, Field(ge=4, le=12)] = 8


class MilvusConfig(Settings):
    """Where Milvus is; a token, if it wants one, comes from the environment variable MILVUS_TOKEN."""

    uri: str  # http://host:19530, or a file ending in .db for the embedded Milvus Lite
    # Names of collections begin so.
    collection: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")] = "mtmh"


class EmbeddingConfig(Settings):
    """What ``mtmh embed --delta-from`` takes for unchanged.

    ``watch_tables``: an item that reads a changed row of one of these is embedded anew; ``None``: of any table. A row
    that many items share changes with every period; with ``[item_id]`` such changes wait for the next full run.
    ``watch_floats``: so is an item whose float features changed, which standardised and popularity features do for
    nearly all items every period. ``max_drift``: the largest mean of 1 - cosine between kept embeddings and
    those that the new model would give, on a sample; above it nothing is written.
    """

    watch_tables: list[str] | None = None
    watch_floats: bool = False
    max_drift: Annotated[float, Field(ge=0.0, le=2.0)] = 0.02


class IndexConfig(Settings):
    """One inverted-file index a head."""

    backend: Literal["faiss", "milvus"] = "faiss"
    num_clusters: Positive | None = None  # None: about 4 * sqrt(items)
    train_sample: Positive = 262_144  # vectors that k-means sees
    iterations: Positive = 20
    storage: Literal["flat", "fp16", "sq8", "pq"] = "flat"  # of the vectors that a search compares
    pq: PqConfig = PqConfig()
    vectors: Literal["fp16", "fp32"] = "fp16"  # kept beside sq8 and pq codes: for refining, triggers and sorting
    refine_factor: Annotated[int, Field(ge=0)] = 4  # sq8 and pq: codes an answer that are compared again by vector
    shard_items: Positive = 131_072  # filed at a time; the memory of a process follows it
    milvus: MilvusConfig | None = None
    tower: Literal["int8", "fp16"] = "int8"  # tables of the tower that embeds items the index does not know
    # The gate: a new index is not published where a head finds less than this share of the exact neighbours.
    min_recall: Annotated[float, Field(ge=0.0, le=1.0)] = 0.8
    keep_versions: Positive = 3  # published versions that stay on disk, for rollback

    @model_validator(mode="after")
    def _backend_fits(self) -> Self:
        if self.backend == "milvus" and self.milvus is None:
            raise ValueError("index.backend is milvus: say where it is by index.milvus.uri")
        if self.backend == "milvus" and self.storage != "flat":
            raise ValueError(f"index.storage is {self.storage}: a setting of faiss; with Milvus leave it flat")
        return self


class RetrievalConfig(Settings):
    """Defaults of a request, and who ranks.

    A verb that asks an index (retrieve, serve, evaluate) goes by its own recipe's settings, but for ``preranker`` and
    ``sorter``: an index version ranks as the recipe said when it was built.
    """

    k: Positive = 30  # kept a trigger (K)
    k_ann: Positive = 1000  # candidates a head (K_ann)
    num_probes: Positive = 32  # clusters searched (C)
    alpha: Annotated[float, Field(ge=0.0, le=100.0)] = 50.0  # share of the engagement head, percent
    # Who ranks each head's candidates, of which K are kept: the head's own similarity, the similarity to the history,
    # or the model of train-preranker.
    preranker: Literal["head-score", "history", "learned"] = "head-score"
    # Who scores the answers of all heads and triggers, which sorts a user's list; None: as preranker. head-score: by
    # the engagement head.
    sorter: Literal["head-score", "history", "learned"] | None = None
    # Each head's candidates ranked and cut alone, then merged by quota; or all heads' candidates in one ranking.
    preranking: Literal["per-head", "shared"] = "per-head"
    unknown: Literal["error", "popular"] = (
        "error"  # triggers that the index does not know and that come without features
    )

    @property
    def needs_preranker(self) -> bool:
        """Whether the model of train-preranker ranks anything."""
        return "learned" in (self.preranker, self.sorter)

    @property
    def sorted_by(self) -> str:
        """Who scores the answers of all heads and triggers."""
        return self.sorter or self.preranker

    def of_index(self, built: RetrievalConfig) -> RetrievalConfig:
        """These settings for an index that was built with others: who ranks is a part of it."""
        return self.model_copy(update={"preranker": built.preranker, "sorter": built.sorter})

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k > self.k_ann:
            raise ValueError(f"retrieval.k ({self.k}) exceeds retrieval.k_ann ({self.k_ann})")
        return self


Yardstick = Literal["item-item", "teacher", "popularity"]


class EvaluationConfig(Settings):
    """The paper's protocol (section 2): triggers from the past, recall against what the user engaged with in T2.

    Two parts grow with the catalogue beyond the model's own index, in the memory of one process. ``exact_search``
    holds all vectors of all heads as float32. Of the ``yardsticks``, ``teacher`` holds the teacher's vectors so, and
    ``item-item`` the training histories of all users. A catalogue too large for that is evaluated without them.
    """

    num_users: Positive = 2000
    num_triggers: Positive = 50
    recall_at: list[Positive] = [5, 20, 100, 500]
    alphas: list[Annotated[float, Field(ge=0.0, le=100.0)]] = [0, 10, 30, 50, 70, 90, 100]
    exact_search: bool = True  # a row that tells the index's loss from the model's
    yardsticks: list[Yardstick] = ["item-item", "teacher", "popularity"]  # the teacher where there is one
    exclude_seen: bool = True  # items of the user's training history are neither answers nor ground truth
