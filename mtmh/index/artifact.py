"""Files of an index artifact, and the summary in its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mtmh.config.model import HeadName
from mtmh.tower.artifact import TowerFacts

PRERANKER = Path("preranker")  # in an index: the learned preranker that ranks its answers, a whole artifact
# item_id, display columns, train_count, first_seen; row number = item index. Of a compacted version REMOVED tells the
# rows that are triggers and no answers.
ITEMS = Path("items.arrow")
REMOVED = "removed"
ITEM_FEATURES = Path("item_features.arrow")  # raw features for filters, likewise; a compacted index has them in ITEMS
IDS = Path("item_ids.npy")  # [I] int64 by item index, where ids are numbers
ITEM_KEYS = Path("item_keys.npy")  # [I] int64 raw ids (`mtmh.data.ids`), ascending
KEY_ITEMS = Path("key_items.npy")  # [I] int32, int64 beyond 2^31: the item of each key


def index_file(head: str) -> Path:
    """The faiss index of one head: clusters, quantizers, and where each list is."""
    return Path(f"{head}.faiss")


def lists_file(head: str) -> Path:
    """The inverted lists of one head: for each list its codes, then its item indices (int64)."""
    return Path(f"{head}.lists")


def places_file(head: str) -> Path:
    """[I] int64: at which value of the lists file the vector of an item begins; for ``flat`` and ``fp16``."""
    return Path(f"{head}.places.npy")


def near_file(head: str) -> Path:
    """[I, P] uint16, int32 beyond 65,536 clusters: the clusters nearest to each item, where a build has kept them."""
    return Path(f"{head}.near.npy")


def exact_file(head: str) -> Path:
    """A flat faiss index of the vectors in item order, beside the codes of ``sq8``, ``pq`` and ``fastscan``."""
    return Path(f"{head}.exact.faiss")


def milvus_file(head: str) -> Path:
    """File that says which collection of Milvus holds the vectors of one head."""
    return Path(f"{head}.milvus.json")


class AnnRecall(BaseModel):
    """Share of the exact ``k`` nearest neighbours that the index finds, over sampled items as queries."""

    model_config = ConfigDict(extra="forbid")

    k: int
    num_probes: int
    num_queries: int
    recall: float


class RankedBy(BaseModel):
    """The scores that a version ranks by, whatever the recipe that asks says."""

    model_config = ConfigDict(extra="forbid")

    preranker: Literal["head-score", "history", "learned"]
    sorter: Literal["head-score", "history", "learned"]
    temperature: float  # of the engagement head's loss, for `history`


class IndexSummary(BaseModel):
    """The ``summary`` of an index manifest."""

    model_config = ConfigDict(extra="forbid")

    heads: list[HeadName]
    dim: int
    num_items: int
    id_type: Literal["int64", "string"]
    num_clusters: int
    ranked_by: RankedBy
    num_probes: int  # clusters that a search visits, where the recipe that asks says auto
    ann_recall: dict[str, AnnRecall]  # by head, with so many probes
    recall_curve: dict[str, list[AnnRecall]] = {}  # by head, all that was measured to choose the number
    backend: Literal["faiss", "milvus"] = "faiss"
    storage: Literal["flat", "fp16", "sq8", "pq", "fastscan"] = "flat"
    # Where the vector of an item is: in the lists; in this precision beside them; or (Milvus) in rows of <head>.npy.
    vectors: Literal["lists", "fp16", "fp32", "rows"] = "lists"
    refine_factor: int = 0
    tower: TowerFacts | None = None
    segments_through: int = 0  # the last segment whose changes are part of this index
    of_dataset: str | None = None  # compacted: digest of the dataset that the version before it goes back to
