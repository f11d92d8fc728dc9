"""The models of the papers' tables, as settings over a recipe, and which of them each table or figure needs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
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
    "related2",
    "related3",
    "adaptive",
    "leave-one-out",
]
PARTS: tuple[Part, ...] = get_args(Part)
NEXT_ITEM: Part = "leave-one-out"  # the one part of recipes that ask for a user's next item

# Of the teacher that a model takes in; "both" and "text" of a recipe whose teacher reads text alone are the same.
Modality = Literal["text", "image", "both"]

Source = Literal["hstu", "sasrec", "content", "mixture"]  # of candidates that no tower of ours finds

# Modules that make a model's artifacts.
STAGES, VECTORS, WATCH, ADAPT = "mtmh.cli", "mtmh.papers.vectors", "mtmh.papers.convergence", "mtmh.papers.adaptive"

MTMH = "MTMH"
CONTENT = "content encoder"
MIXTURE = "MoL, mixture of logits"
DEFAULTS = "MTMH, defaults"  # the recipe's own settings, not the paper's, and its own length of training
LEARNED_WEIGHTS = {"MTMH, learned weights": "uncertainty", "MTMH, GradNorm": "gradnorm"}  # of the losses
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 5.0)  # w_r of table 4
# Of the semantic task beside a co-engagement loss of weight 1: a thousandth of the related-video paper's (table I).
MULTIMODAL_WEIGHT = 0.5  # the same of its table II
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
        modality: what its teacher knows of an item, where that is not the recipe's teacher; None: the recipe's.
    """

    name: str
    variants: tuple[str, ...] = ()
    num_heads: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    entry: tuple[str, ...] = (STAGES, "run")
    modality: Modality | None = None

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
        config = self._config(recipe, shared)
        if self.num_heads != 2:
            settings["retrieval.k_ann"] = 2 * config.retrieval.k_ann // self.num_heads
        settings |= _teacher_of(self.modality, config)
        return [*shared, *(f"{key}={json.dumps(value)}" for key, value in settings.items())]

    def _config(self, recipe: str, shared: list[str]) -> Config:
        return load_config(self.recipe(recipe), shared)


def _teacher_of(modality: Modality | None, config: Config) -> dict[str, Any]:
    """Settings of a trained teacher that reads one kind of content; it has folders of its own, and no gates."""
    encoder = config.content.encoder
    if modality not in ("text", "image") or encoder is None or encoder.text is None or encoder.image is None:
        return {}
    settings: dict[str, Any] = {
        "paths.content": str(config.paths.root / f"content-{modality}"),
        "paths.encoder": str(config.paths.root / f"encoder-{modality}"),
        **{f"content.check.{name}": None for name in type(config.content.check).model_fields if name.startswith("min")},
    }
    if modality == "text":
        return settings | {"content.encoder.image": None}
    concept = encoder.concept or encoder.text  # concepts are texts
    return settings | {"content.encoder.text": None, "content.encoder.concept": concept.model_dump(exclude_unset=True)}


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


def _with_input(modality: Modality) -> PaperModel:
    """The related-video paper's model with a semantic task and content as an input, at the weight of its table II."""
    base = _semantic(MULTIMODAL_WEIGHT)
    settings = base.settings | {"model.content_dim": 64}
    return replace(base, name=input_name(modality), settings=settings, modality=modality)


def check_names(names: Iterable[str]) -> None:
    """Tells of a name that is that of no model.

    Raises:
        ValueError: of the first; the message lists those that there are.
    """
    known = [*MODELS, *(model.name for model in (*WATCHED.values(), ADAPTED))]
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r}: no such model; expected one of {'; '.join(known)}")


def input_name(modality: Modality) -> str:
    """The name of a model of the related-video paper that takes content in."""
    return f"semantic task, {modality} as input"


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
        # A length that is small for the sake of time is none of the recipe's own settings.
        PaperModel(DEFAULTS, (), 2, {"training.epochs": "auto"}),
        _paper("ItemCF", "itemcf"),
        _paper("NeuCF", "neucf"),
        _paper("MoL", "mol"),
        _paper("HLLM", "hllm"),
        _paper("HSTU", vectors="hstu"),
        _paper("SASRec", vectors="sasrec"),
        _paper(MIXTURE, "neucf", vectors="mixture"),
        _paper(CONTENT, vectors="content"),
        _paper("MTSH", "mtsh"),
        _paper("STMH", "stmh", heads=2),
        *(_weighted(weight) for weight in WEIGHTS if weight != 0.5),
        *map(_semantic, SEMANTIC_WEIGHTS),
        *map(_with_input, get_args(Modality)),
        *(_paper(name, heads=2, loss__weighting=weighting) for name, weighting in LEARNED_WEIGHTS.items()),
        *map(_propensity, (None, "candidate", "both")),
    )
}

PROPENSITIES = tuple(name for name in MODELS if "propensity" in name)  # MTMH itself weighs by the trigger

BASELINES = ("ItemCF", "NeuCF", "MoL", "HLLM", "HSTU")

# Those that can be had on data without content.
WITHOUT_CONTENT = ("ItemCF", "NeuCF", "MoL", "HSTU", "SASRec", MIXTURE, DEFAULTS)

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

# The model of which an alpha for each user is chosen: it holds an end of T1 back.
ADAPTED = PaperModel("alpha for each user", ("paper",), 2, {"training.epochs": "auto"}, (ADAPT,))

NEEDED: dict[Part, tuple[str, ...]] = {
    "table1": (MTMH, *BASELINES, "SASRec", MIXTURE, DEFAULTS),
    "table2": (MTMH, "MTSH", "STMH"),
    "table4": tuple(dict.fromkeys([MTMH, *map(weight_name, WEIGHTS), *LEARNED_WEIGHTS])),
    "figure1": (MTMH, "NeuCF", CONTENT),
    "figure2": (MTMH, "NeuCF", "MTSH"),
    "figure6": (MTMH, *BASELINES, "MTSH", "STMH"),
    "figure7": (MTMH, "NeuCF"),
    "table5": (MTMH, *BASELINES),
    "related1": ("NeuCF", *map(semantic_name, SEMANTIC_WEIGHTS), "MTSH"),  # pseudo-labels, and a softmax of all (KL)
    "related2": (semantic_name(MULTIMODAL_WEIGHT), *map(input_name, get_args(Modality))),
    "related3": (MTMH, *PROPENSITIES),
    "adaptive": (),  # but `ADAPTED`
    "leave-one-out": (DEFAULTS,),
}
