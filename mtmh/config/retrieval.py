"""Settings of retrieval: the defaults of a request, and the scores that rank its candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mtmh.config.base import Decides, Positive, Settings

Ranking = Literal["head-score", "history", "learned"]


class RetrievalConfig(Settings):
    """Defaults of a request, and who ranks.

    A verb that asks an index (retrieve, serve, evaluate) goes by its own recipe's settings, but for ``preranker`` and
    ``sorter``: an index version ranks as the recipe said when it was built.
    """

    k: Positive = 30  # kept a trigger (K)
    k_ann: Positive = 1000  # candidates a head (K_ann) that are ranked; head-score, which keeps their order, takes K
    # Clusters searched (C); an index records the recall that it has with them. auto: as many as the build found to
    # reach index.min_recall.
    num_probes: Annotated[Positive | Literal["auto"], Decides("index", "evaluation")] = "auto"
    alpha: Annotated[float, Field(ge=0.0, le=100.0)] = 50.0  # share of the engagement head, percent
    # Who ranks each head's candidates, of which K are kept: the head's own similarity, the similarity to the history,
    # or the model of train-preranker.
    preranker: Annotated[Ranking, Decides("index", "evaluation")] = "head-score"
    # Who scores the answers of all heads and triggers, which sorts a user's list; None: as preranker. head-score: by
    # the engagement head, and so does an index that is built before the preranker is trained.
    sorter: Annotated[Ranking | None, Decides("index", "evaluation")] = "learned"
    # Share of a user's list, percent, that goes to the best of all that is known of the user: what the heads found,
    # neighbours by co-occurrence and popular items, as the learned model ranks them. Alpha divides the rest. A request
    # that names alpha or shares has its whole list divided among the heads.
    user_share: Annotated[float, Field(ge=0.0, le=100.0)] = 100.0
    # Public key, a PEM file: only index versions signed with its secret key are taken into use.
    trusted_key: Path | None = None
    unknown: Literal["error", "popular"] = (
        "error"  # triggers that the index does not know and that come without features
    )

    @property
    def needs_preranker(self) -> bool:
        """True if the model of train-preranker ranks anything."""
        return "learned" in (self.preranker, self.sorter)

    @property
    def sorted_by(self) -> Ranking:
        """The scores that sort the answers of all heads and triggers."""
        return self.sorter or self.preranker

    def of_index(self, preranker: Ranking, sorter: Ranking, num_probes: int) -> RetrievalConfig:
        """These settings for an index: what ranks is a part of it, and what ``auto`` comes to."""
        probes = num_probes if self.num_probes == "auto" else self.num_probes
        return self.model_copy(update={"preranker": preranker, "sorter": sorter, "num_probes": probes})

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k > self.k_ann:
            raise ValueError(f"retrieval.k ({self.k}) exceeds retrieval.k_ann ({self.k_ann})")
        return self
