"""One validated tree of settings; a recipe is one YAML file that fills it.

A recipe may start from another one (``extends: NAME``), variants may be laid over it (``amazon+single-task``), and any
leaf can be changed from the command line (``--set training.epochs=2``). Unknown keys are errors, so a misspelt setting
never runs silently.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, ValidationError, model_validator

from mtmh.config.base import Decides, Settings
from mtmh.config.chain import ChainConfig
from mtmh.config.content import ContentConfig
from mtmh.config.data import DataConfig, PairsConfig, ValidationConfig
from mtmh.config.distributed import ShardingConfig
from mtmh.config.evaluation import EvaluationConfig
from mtmh.config.index import IndexConfig
from mtmh.config.messages import describe_problems, others
from mtmh.config.model import ModelConfig
from mtmh.config.preranking import PrerankerConfig
from mtmh.config.retrieval import RetrievalConfig
from mtmh.config.serving import ServiceConfig
from mtmh.config.tower import EmbeddingConfig
from mtmh.config.training import LossConfig, PlanConfig, TrainingConfig
from mtmh.config.yaml_reader import read_yaml


class PathsConfig(Settings):
    """The folders of artifacts. Recipes that share a root share its dataset and its content embeddings.

    ``preranker``: the folder of another model (``root/name``), whose preranker ranks for this one too. It goes with
    ``preranker.head_embeddings: false``: then the preranker knows nothing of the model.

    ``local``: a folder on a disk of each host's own, to which training first copies dataset and content, once a host.
    """

    root: Path  # of all artifacts
    dataset: Path | None = None  # null: ROOT/dataset
    content: Path | None = None  # null: ROOT/content
    encoder: Path | None = None  # null: ROOT/encoder
    media: Path | None = None  # null: ROOT/media
    preranker: Path | None = None
    local: Path | None = None


class Config(Settings):
    """A whole recipe."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # of the model: its artifacts are in ROOT/NAME
    description: str = ""  # for people
    seed: Annotated[
        int,
        Field(ge=0, lt=2**31),
        Decides(
            "dataset", "encoder", "check", "checkpoint", "index", "preranker-checkpoint", "preranker", "evaluation"
        ),
    ] = 0
    paths: PathsConfig
    data: Annotated[DataConfig, Decides("dataset")]
    validation: Annotated[ValidationConfig, Decides("checkpoint", "preranker-checkpoint", "preranker")] = (
        ValidationConfig()
    )
    pairs: Annotated[PairsConfig, Decides("checkpoint")] = PairsConfig()
    content: Annotated[ContentConfig, Decides("encoder", "content", "check")] = ContentConfig()
    model: Annotated[ModelConfig, Decides("checkpoint")] = ModelConfig()
    loss: Annotated[LossConfig, Decides("checkpoint")] = LossConfig()
    sharding: ShardingConfig = ShardingConfig()
    plan: PlanConfig = PlanConfig()
    training: Annotated[TrainingConfig, Decides("checkpoint")] = TrainingConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    index: Annotated[IndexConfig, Decides("index")] = IndexConfig()
    preranker: Annotated[PrerankerConfig, Decides("preranker-checkpoint", "preranker")] = PrerankerConfig()
    retrieval: Annotated[RetrievalConfig, Decides("evaluation")] = RetrievalConfig()
    evaluation: Annotated[EvaluationConfig, Decides("evaluation")] = EvaluationConfig()
    service: ServiceConfig = ServiceConfig()
    chain: ChainConfig = ChainConfig()

    @property
    def dataset_dir(self) -> Path:
        """The dataset artifact, shared by all models of a root."""
        return self.paths.dataset or self.paths.root / "dataset"

    @property
    def content_dir(self) -> Path:
        """The content embeddings, shared by all models of a root."""
        return self.paths.content or self.paths.root / "content"

    @property
    def encoder_dir(self) -> Path:
        """The trained content encoder, shared by all models of a root."""
        return self.paths.encoder or self.paths.root / "encoder"

    @property
    def media_dir(self) -> Path:
        """Images and concepts of a simulated catalogue, shared by all models of a root."""
        return self.paths.media or self.paths.root / "media"

    @property
    def needs_content(self) -> bool:
        """True if any loss or weight of the recipe compares content embeddings."""
        return self.model.needs_teacher or self.pairs.sim.kind == "content"

    @property
    def trains_without_end(self) -> bool:
        """True if a model is trained that does not see the end of T1: to choose the length, or to weigh evidence by."""
        weighs = self.retrieval.needs_preranker and self.preranker.head_embeddings
        by_hand = self.training.max_steps is None and self.data.item_features != "ride_along"
        return self.training.chooses_length or (weighs and by_hand)

    def model_dir(
        self, stage: Literal["checkpoints", "embeddings", "index", "preranker", "evaluation", "similar-items", "chain"]
    ) -> Path:
        """The folder of one stage of this model."""
        return (self._preranker_home if stage == "preranker" else self.paths.root / self.name) / stage

    @property
    def preranker_checkpoints(self) -> Path:
        """The checkpoints of this model's preranker."""
        return self._preranker_home / "preranker-training" / "checkpoints"

    @property
    def held_back_embeddings(self) -> Path:
        """Embeddings of this model as it was before it had seen the end of T1, for the preranker."""
        return self.paths.root / self.name / "preranker-training" / "embeddings"

    @property
    def feedback_file(self) -> Path:
        """The log of what feedback on this model's answers has taught."""
        adaptive = self.service.adaptive_alpha
        named = adaptive.file if adaptive is not None else None
        return named or self.paths.root / self.name / "feedback.sqlite"

    @property
    def _preranker_home(self) -> Path:
        return self.paths.preranker or self.paths.root / self.name

    @model_validator(mode="after")
    def _preranker_can_be_shared(self) -> Self:
        if self.paths.preranker is not None and self.preranker.head_embeddings:
            raise ValueError(
                "paths.preranker is another model's, which takes that one's embeddings: it needs"
                " preranker.head_embeddings = false"
            )
        return self


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return _yaml_names(_recipes())


def variant_names() -> list[str]:
    """Names of the variants that can be laid over any recipe."""
    return _yaml_names(_recipes() / "variants")


def load_config(recipe: str | Path, overrides: list[str] | None = None) -> Config:
    """Reads a recipe and applies overrides.

    Args:
        recipe: name of a recipe that ships with the package, or path of a YAML file; ``+VARIANT`` behind it lays a
            variant over it, as in ``amazon+single-task``.
        overrides: ``dotted.key=value`` each; the value is read as YAML.

    Raises:
        ValueError: no such recipe, broken YAML, or a setting that does not fit; the message names file and field.
    """
    tree = _read_recipe(recipe, seen=())
    for override in overrides or []:
        apply_override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"recipe {recipe}: {describe_problems(error, Config)}") from None


def _recipes() -> Any:
    return resources.files("mtmh.config") / "recipes"


def _yaml_names(folder: Any) -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _read_variant(name: str) -> dict[str, Any]:
    path = _recipes() / "variants" / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"no variant {name}: {others(name, variant_names())}")
    return cast(dict[str, Any], read_yaml(path.read_text()))


def _read_recipe(recipe: str | Path, seen: tuple[str, ...]) -> dict[str, Any]:
    base, *variants = str(recipe).split("+")
    tree = _read_base(base, seen)
    for variant in variants:
        tree = _merged(tree, _read_variant(variant))
    return tree


def _read_base(recipe: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if recipe in seen:
        raise ValueError(f"recipe {recipe}: extends itself ({' -> '.join((*seen, recipe))})")
    path = Path(recipe)
    shipped = _recipes() / f"{recipe}.yaml"
    if path.is_file():
        text = path.read_text()
    elif path.suffix == "" and shipped.is_file():
        text = shipped.read_text()
    else:
        files = sorted(map(str, path.parent.glob("*.yaml")))
        raise ValueError(
            f"no recipe {recipe}: no such file; {others(recipe, files if path.suffix else recipe_names())}"
        )
    try:
        tree = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"recipe {recipe}: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"recipe {recipe}: expected a mapping of settings at the top")
    base = tree.pop("extends", None)
    if base is None:
        return cast(dict[str, Any], tree)
    # A sibling file wins over a shipped recipe of the same name.
    name, plus, variants = str(base).partition("+")
    sibling = path.parent / f"{name}.yaml"
    parent = f"{sibling}{plus}{variants}" if path.is_file() and sibling.is_file() else str(base)
    return _merged(_read_recipe(parent, (*seen, recipe)), tree)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Puts one ``dotted.key=value`` into a recipe's tree; the value is read as YAML.

    Raises:
        ValueError: not of that form, or a section of the key is a value.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override {override!r}: expected dotted.key=value")
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"override {override!r}: the value is {error}") from None
    try:
        put_setting(tree, key, value)
    except ValueError as error:
        raise ValueError(f"override {override!r}: {error}") from None


def put_setting(tree: dict[str, Any], key: str, value: Any) -> None:
    """Puts a value under a dotted key; sections that are missing are made.

    Raises:
        ValueError: a section of the key is a value.
    """
    *sections, leaf = key.split(".")
    for section in sections:
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            raise ValueError(f"{section} is a value, not a section")
        tree = below
    tree[leaf] = value
