"""Settings of the item tower and its heads."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mtmh.config.base import NonNegative, Positive, Settings
from mtmh.specs import Head, IdTable

HeadName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]  # also begins the names of files


class HeadConfig(Settings):
    """One head and its loss: ``engagement_weight * L_e + relevance_weight * L_r + semantic_weight * L_s``.

    ``L_e``, ``L_r``: co-engagement and distillation (paper, equation 3). ``L_s``: pseudo-labels (``loss.semantic``),
    which the related-video paper weighs 1 to 1000 times as much as the co-engagement loss.
    """

    name: HeadName
    engagement_weight: NonNegative = 1.0
    relevance_weight: NonNegative = 0.0
    semantic_weight: NonNegative = 0.0

    @model_validator(mode="after")
    def _is_a_head(self) -> Self:
        Head(**self.model_dump())
        return self


class IdTableConfig(Settings):
    """A table of raw 64-bit ids: rows are given to ids as they come (hash ZCH, `mtmh.modules.IdTable`).

    ``buckets``: the number of ranks must divide it. ``max_probe``: rows that an id may take. ``eviction``: what an id
    does that finds them all taken: go without (``none``), take the one seen longest ago (``lru``), or take one that
    was not seen for more than ``ttl_steps`` training steps (``ttl``).
    """

    rows: Positive
    buckets: Positive = 48
    max_probe: Positive = 128
    eviction: Literal["none", "lru", "ttl"] = "none"
    ttl_steps: Positive | None = None

    @model_validator(mode="after")
    def _is_a_table(self) -> Self:
        IdTable(**self.model_dump())
        return self


class ModelConfig(Settings):
    """The item tower and its heads. MTMH, MTSH, STMH and single-task differ in ``heads`` only."""

    id_features: list[str] | None = None  # those of the dataset that the tower reads, item_id among them; null: all
    float_features: bool = True  # whether the tower reads the dataset's numbers
    embedding_dim: Annotated[int, Field(ge=4, multiple_of=4)] = 64  # width of a row of an id feature's table
    feature_dims: dict[str, Annotated[int, Field(ge=4, multiple_of=4)]] = {}  # id features with another width
    embedding_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"  # of the tables
    id_tables: dict[str, IdTableConfig] = {}  # tables of raw ids in place of the vocabulary
    dense_hidden: list[Positive] = [64]  # widths of the layers over the numbers
    dense_dim: Positive = 32  # width of what they give
    # Principal components of the teacher's embedding that are an input, where a loss needs the teacher; 0: none.
    content_dim: Annotated[int, Field(ge=0)] = 64
    # Null: no layers; a head is what the towers give, so one head is enough and head_dim is their width.
    head_hidden: list[Positive] | None = [256]
    head_dim: Positive = 128  # width of an item's embedding under a head
    normalize: bool = True  # unit-length head outputs: the dot product is the cosine used at serving
    id_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # share of items that pass as unseen, trains row 0
    heads: list[HeadConfig] = [
        HeadConfig(name="engagement"),
        HeadConfig(name="relevance", relevance_weight=0.5),
    ]

    @field_validator("heads")
    @classmethod
    def _heads_differ(cls, heads: list[HeadConfig]) -> list[HeadConfig]:
        names = [head.name for head in heads]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"model.heads needs at least one head and distinct names, got {names}")
        return heads

    @field_validator("id_features")
    @classmethod
    def _reads_the_id(cls, features: list[str] | None) -> list[str] | None:
        if features is not None and ("item_id" not in features or len(set(features)) != len(features)):
            raise ValueError(f"model.id_features needs item_id and distinct names, got {features}")
        return features

    @field_validator("id_tables")
    @classmethod
    def _ids_are_kept(cls, tables: dict[str, IdTableConfig]) -> dict[str, IdTableConfig]:
        if set(tables) - {"item_id"}:
            raise ValueError(f"datasets keep the raw ids of item_id alone, got {', '.join(tables)}")
        return tables

    @property
    def needs_teacher(self) -> bool:
        """True if any head learns from the teacher."""
        return any(head.relevance_weight > 0.0 or head.semantic_weight > 0.0 for head in self.heads)
