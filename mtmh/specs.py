"""A head and a table of raw ids as plain values, checked in one place: settings and model share them, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Head:
    """One head of the model and its loss, ``engagement_weight * L_e + relevance_weight * L_r + semantic_weight * L_s``.

    ``L_e`` and ``L_r`` are those of MTMH (equation 3), ``L_s`` the semantic task of the related-video paper (equation
    5). A list of heads is all that tells the papers' models apart::

        single task    [Head("engagement")]
        MTSH           [Head("multi_task", relevance_weight=0.5)]
        STMH           [Head("engagement"), Head("relevance", engagement_weight=0.0, relevance_weight=1.0)]
        MTMH           [Head("engagement"), Head("relevance", relevance_weight=0.5)]
        related video  [Head("multi_task", semantic_weight=500.0)]

    Raises:
        ValueError: a weight is negative or not finite, or all are zero.
    """

    name: str
    engagement_weight: float = 1.0
    relevance_weight: float = 0.0
    semantic_weight: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.engagement_weight, self.relevance_weight, self.semantic_weight)
        if not all(math.isfinite(weight) and weight >= 0.0 for weight in weights):
            raise ValueError(f"head {self.name!r}: loss weights must be finite and at least 0, got {weights}")
        if not any(weights):
            raise ValueError(
                f"head {self.name!r} has no loss: give it an engagement_weight, a relevance_weight or a semantic_weight"
            )


@dataclass(frozen=True)
class IdTable:
    """A table whose rows are given to raw ids as they come.

    Attributes:
        rows: rows of the table; a multiple of ``buckets``.
        buckets: parts of the table that a sharder never cuts; any number of ranks that divides it gives every id the
            same row.
        max_probe: rows that an id may take, counted from the one that its hash names; the others of its bucket stay
            closed to it.
        eviction: what an id does that finds all those rows taken. ``none``: it goes without. ``lru``: it takes the row
            of the id that was seen longest ago, if that was before this step. ``ttl``: it takes the first row whose id
            was not seen for more than ``ttl_steps`` steps, and goes without if there is none.
        ttl_steps: steps of training, for ``ttl``.

    Raises:
        ValueError: values that are out of range or do not go together.
    """

    rows: int
    buckets: int = 48
    max_probe: int = 128
    eviction: Literal["none", "lru", "ttl"] = "none"
    ttl_steps: int | None = None

    def __post_init__(self) -> None:
        if self.buckets < 1 or self.max_probe < 1:
            raise ValueError(f"buckets and max_probe must be at least 1, got {self.buckets} and {self.max_probe}")
        if self.rows < 1 or self.rows % self.buckets:
            raise ValueError(
                f"rows ({self.rows}) must be a positive multiple of buckets ({self.buckets}), such as"
                f" {max(1, -(-self.rows // self.buckets)) * self.buckets}"
            )
        if (self.eviction == "ttl") != (self.ttl_steps is not None) or (
            self.ttl_steps is not None and self.ttl_steps < 1
        ):
            raise ValueError(
                f"ttl_steps, at least 1, goes with eviction = ttl and only with it; got {self.ttl_steps} with "
                f"{self.eviction}"
            )
