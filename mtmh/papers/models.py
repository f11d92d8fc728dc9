"""The models of the papers' tables, as settings over a recipe, and which of them each table or figure needs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mtmh.config import Config, load_config

Part = Literal[
    "table1",
    "table2",
    "table4",
    "figure1",
    "figure2",
    "figure6",
    "figure7",
    "table5",
    "related1",
    "related3",
    "leave-one-out",
]
PARTS: tuple[Part, ...] = get_args(Part)
NEXT_ITEM: Part = "leave-one-out"  # the one part of recipes that ask for a user's next item

Source = Literal["hstu", "content"]  # of item embeddings that no tower of ours makes

# Modules that make a model's artifacts.
STAGES, VECTORS, WATCH = "mtmh.cli", "mtmh.papers.vectors", "mtmh.papers.convergence"

MTMH = "MTMH"
CONTENT = "content encoder"
DEFAULTS = "MTMH, defaults"  # the recipe's own settings, not the paper's
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 5.0)  # w_r of table 4
# Of the semantic task beside a co-engagement loss of weight 1: a thousandth of the related-video paper's (table I).
SEMANTIC_WEIGHTS = (0.001, 0.01, 0.1, 0.5, 1.0)


@dataclass(frozen=True)
class PaperModel:
    """A model of a table.

    Attributes:
        name: as the papers call it.
        variants: laid over the recipe, one after another.
        num_heads: the candidates of a trigger are divided among them.
        settings: by dotted key, over all variants.
        entry: the module that makes its artifacts, and its first arguments.
    """

    name: str
    variants: tuple[str, ...] = ()
    num_heads: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    entry: tuple[str, ...] = (STAGES, "run")

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower())

    def recipe(self, recipe: str) -> str:
        """The recipe with this model's variants."""
        return "+".join([recipe, *self.variants])

    def overrides(self, recipe: str, shared: list[str]) -> list[str]:
        """``KEY=VALUE`` of this model over those of all; each of its heads finds an equal share of the candidates.

        A recipe says how many candidates each of two heads finds.
        """
        settings = dict(self.settings)
        if self.num_heads != 2:
            settings["retrieval.k_ann"] = 2 * self._config(recipe, shared).retrieval.k_ann // self.num_heads
        return [*shared, *(f"{key}={json.dumps(value)}" for key, value in settings.items())]

    def _config(self, recipe: str, shared: list[str]) -> Config:
        return load_config(self.recipe(recipe), shared)


def _paper(name: str, *variants: str, heads: int = 1, vectors: Source | None = None, **settings: Any) -> PaperModel:
    """A model by the paper's settings; the yardsticks and exact search stand in the table of MTMH alone."""
    alone = {"evaluation.yardsticks": [], "evaluation.exact_search": False, "evaluation.alphas": []}
    dotted = alone | {key.replace("__", "."): value for key, value in settings.items()}
    entry = (STAGES, "run") if vectors is None else (VECTORS, vectors)
    return PaperModel(name, ("paper", *variants), heads, dotted, entry)


def _weighted(weight: float) -> PaperModel:
    heads = [
        {"name": "engagement"},
        {"name": "relevance", "engagement_weight": 1.0, "relevance_weight": weight},
    ]
    return _paper(weight_name(weight), heads=2, model__heads=heads)


def _semantic(weight: float) -> PaperModel:
    heads = [{"name": "multitask", "engagement_weight": 1.0, "semantic_weight": weight}]
    return _paper(semantic_name(weight), "semantic", model__heads=heads)


def semantic_name(weight: float) -> str:
    """The name of a model of the related-video paper by the weight of its semantic task."""
    return f"1 to {1000 * weight:g}"


def _propensity(count_of: str | None) -> PaperModel:
    loss = None if count_of is None else {"count_of": count_of}
    return _paper(f"MTMH, propensity {count_of or 'none'}", heads=2, loss__propensity=loss)


def weight_name(weight: float) -> str:
    """The name of MTMH with another weight of the relevance loss; the paper's own is MTMH itself."""
    return MTMH if weight == 0.5 else f"MTMH, w_r = {weight:g}"


MODELS: dict[str, PaperModel] = {
    model.name: model
    for model in (
        PaperModel(MTMH, ("paper",), 2, {"evaluation.rank_all": True}),
        PaperModel(DEFAULTS, (), 2),
        _paper("ItemCF", "itemcf"),
        _paper("NeuCF", "neucf"),
        _paper("MoL", "mol"),
        _paper("HLLM", "hllm"),
        _paper("HSTU", vectors="hstu"),
        _paper(CONTENT, vectors="content"),
        _paper("MTSH", "mtsh"),
        _paper("STMH", "stmh", heads=2),
        *(_weighted(weight) for weight in WEIGHTS if weight != 0.5),
        *map(_semantic, SEMANTIC_WEIGHTS),
        *map(_propensity, (None, "candidate", "both")),
    )
}

PROPENSITIES = tuple(name for name in MODELS if "propensity" in name)  # MTMH itself weighs by the trigger

BASELINES = ("ItemCF", "NeuCF", "MoL", "HLLM", "HSTU")

# Those that can be had on data without content.
WITHOUT_CONTENT = ("ItemCF", "NeuCF", "MoL", "HSTU", DEFAULTS)

# Training runs of figure 7, whose embeddings are watched on their way.
WATCHED: dict[str, PaperModel] = {
    name: PaperModel(
        f"figure 7, {name}",
        ("paper", *variants),
        num_heads,
        {"training.epochs": 3},
        (WATCH,),
    )
    for name, variants, num_heads in ((MTMH, (), 2), ("NeuCF", ("neucf",), 1))
}

NEEDED: dict[Part, tuple[str, ...]] = {
    "table1": (MTMH, *BASELINES, DEFAULTS),
    "table2": (MTMH, "MTSH", "STMH"),
    "table4": tuple(dict.fromkeys([MTMH, *map(weight_name, WEIGHTS)])),
    "figure1": (MTMH, "NeuCF", CONTENT),
    "figure2": (MTMH, "NeuCF", "MTSH"),
    "figure6": (MTMH, *BASELINES, "MTSH", "STMH"),
    "figure7": (MTMH, "NeuCF"),
    "table5": (MTMH, *BASELINES),
    "related1": ("NeuCF", *map(semantic_name, SEMANTIC_WEIGHTS)),
    "related3": (MTMH, *PROPENSITIES),
    "leave-one-out": (DEFAULTS,),
}
