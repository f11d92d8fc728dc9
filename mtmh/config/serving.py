"""Settings of the index, of retrieval and of its evaluation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mtmh.config.base import Positive, Settings


class IndexConfig(Settings):
    """One faiss inverted-file index a head."""

    num_clusters: Positive | None = None  # None: about 4 * sqrt(items)
    train_sample: Positive = 262_144  # vectors that k-means sees
    iterations: Positive = 20
    # The gate: a new index is not published where a head finds less than this share of the exact neighbours.
    min_recall: Annotated[float, Field(ge=0.0, le=1.0)] = 0.8
    keep_versions: Positive = 3  # published versions that stay on disk, for rollback


class RetrievalConfig(Settings):
    """Defaults of a request; each can change per request."""

    k: Positive = 30  # kept a trigger (K)
    k_ann: Positive = 1000  # candidates a head (K_ann)
    num_probes: Positive = 32  # clusters searched (C)
    alpha: Annotated[float, Field(ge=0.0, le=100.0)] = 50.0  # share of the engagement head, percent
    unknown: Literal["error", "popular"] = (
        "error"  # triggers that the index does not know and that come without features
    )

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k > self.k_ann:
            raise ValueError(f"retrieval.k ({self.k}) exceeds retrieval.k_ann ({self.k_ann})")
        return self


class EvaluationConfig(Settings):
    """The paper's protocol (section 2): triggers from the past, recall against what the user engaged with in T2."""

    num_users: Positive = 2000
    num_triggers: Positive = 50
    recall_at: list[Positive] = [5, 20, 100, 500]
    alphas: list[Annotated[float, Field(ge=0.0, le=100.0)]] = [0, 10, 30, 50, 70, 90, 100]
    exclude_seen: bool = True  # items of the user's training history are neither answers nor ground truth
