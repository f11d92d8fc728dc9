"""One validated tree of settings; a recipe is one YAML file that fills it.

A recipe may start from another one (``extends: NAME``), variants may be laid over it (``amazon+single-task``), and any
leaf can be changed from the command line (``--set training.epochs=2``). Unknown keys are errors, so a misspelt setting
never runs silently.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0.0)]


class Settings(BaseModel):
    """Base of every section: immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PathsConfig(Settings):
    """Where artifacts live. Recipes that share a root share its dataset and its content embeddings."""

    root: Path
    dataset: Path | None = None
    content: Path | None = None
    encoder: Path | None = None
    media: Path | None = None


class SplitConfig(Settings):
    """How events are cut into the training period T1 and the test period T2.

    ``time``: one global cut, at ``cutoff`` (same unit as the events' timestamp) or, without it, where
    ``test_fraction`` of the events lie behind. ``user``: the last ``test_fraction`` of each user's events.
    """

    kind: Literal["time", "user"] = "time"
    test_fraction: Fraction = 0.2
    cutoff: float | str | None = None

    @model_validator(mode="after")
    def _cutoff_is_for_time(self) -> Self:
        if self.cutoff is not None and self.kind != "time":
            raise ValueError("split.cutoff is a point in time: it needs split.kind = time")
        return self


class TableColumns(Settings):
    """Names of the columns in the user's own tables (source ``tables``); ``None``: the column is absent."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str = "timestamp"
    event: str | None = None
    value: str | None = None
    text: list[str] = []
    image: str | None = None
    topic_l1: str | None = None
    topic_l2: str | None = None
    content_embedding: str | None = None


class DataConfig(Settings):
    """From raw logs to a dataset artifact."""

    source: Literal["synthetic", "movielens", "complete-journey", "online-retail", "amazon", "tables"]
    input: Path | None = None
    events: list[Path] = []  # source ``tables``: event files (Parquet or CSV), relative to ``input``
    items: list[Path] = []  # source ``tables``: item files
    columns: TableColumns = TableColumns()
    options: dict[str, Any] = {}  # checked by the source's own settings class
    split: SplitConfig = SplitConfig()
    min_user_events: Positive = 2
    min_item_events: Positive = 1
    max_history: Positive = 1000  # a user's last events kept for training
    id_features: list[str] | None = None  # None: all that the source offers
    float_features: list[str] | None = None
    min_feature_count: Positive = 1  # rarer values of an id feature share row 0 (unknown)
    popularity_features: bool = True  # adds log training count and item age at the cut, both from T1 only
    memory_limit_gb: Annotated[float, Field(gt=0.0)] = 2.0
    threads: Positive = 2


class SimWeightConfig(Settings):
    """More weight for positives that are semantically close (the search-based interest model of the paper, 3.1).

    ``feature``: the two items share a value of the id feature ``feature``. ``content``: their teacher cosine is
    at least ``threshold``. Such pairs weigh ``boost``, all others 1. Topics are evaluation labels, never used here.
    """

    kind: Literal["none", "feature", "content"] = "none"
    feature: str | None = None
    threshold: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.5
    boost: Annotated[float, Field(ge=1.0)] = 2.0

    @model_validator(mode="after")
    def _feature_named(self) -> Self:
        if (self.kind == "feature") != (self.feature is not None):
            raise ValueError(
                "pairs.sim.feature names the shared id feature: give it with kind = feature, and only then"
            )
        return self


class PairsConfig(Settings):
    """Positives from histories: item T of a user's history is paired with each of the ``window`` items before it.

    ``forward``: the earlier item is the trigger, the later one the candidate. ``both``: each pair in both directions.
    """

    window: Positive = 20
    direction: Literal["forward", "both"] = "forward"
    sim: SimWeightConfig = SimWeightConfig()


class BackboneConfig(Settings):
    """One pretrained encoder of the teacher, and how much of it is trained.

    ``model``: a local ``transformers`` folder, a hub name, ``package:NAME`` (a folder ``model`` inside an installed
    Python package), or ``random:NAME`` (a known architecture at random weights, built offline).
    ``pooling``: ``auto`` follows what comes with the model. ``tune``: ``frozen``, the ``last`` ``tune_layers`` layers,
    ``lora`` adapters of rank ``lora_rank`` (needs the extra ``lora``), or ``full``.
    """

    model: str
    pooling: Literal["auto", "mean", "first", "last", "pooler", "projection"] = "auto"
    tune: Literal["frozen", "last", "lora", "full"] = "frozen"
    tune_layers: Positive = 2
    lora_rank: Positive = 16


class EncoderTrainingConfig(Settings):
    """Content against concepts, contrastive. ``batch_size`` counts pairs of the global batch."""

    batch_size: Positive = 256
    epochs: Positive = 1
    max_steps: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3  # of the new layers
    backbone_learning_rate: Annotated[float, Field(gt=0.0)] = 2e-5
    weight_decay: NonNegative = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(gt=0.0)] = 0.07
    source_weights: dict[str, NonNegative] = {}  # of concepts by their source; a source not named here weighs 1
    modality_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2  # items that lose one modality, trains stand-ins
    gradient_checkpointing: bool = False
    checkpoint_every: Positive = 500
    log_every: Positive = 20


class EncoderConfig(Settings):
    """A multimodal teacher: a text encoder, an image encoder or both, fused and trained against concepts.

    ``images``: where the items' images are: a folder or a tar, in which the items' ``image`` is a file name, or a
    Parquet file with columns ``item_id`` and ``image`` (bytes). ``concepts``: a Parquet file with columns ``item_id``,
    ``concept`` and ``source``. Without them, those of the recipe's media (``mtmh content simulate``) if there are any;
    without those, ``image`` is a path as it stands.
    """

    text: BackboneConfig | None = None
    image: BackboneConfig | None = None
    concept: BackboneConfig | None = None  # None: the text encoder is shared
    hidden: list[Positive] = [512]
    dim: Positive = 128
    images: Path | None = None
    concepts: Path | None = None
    training: EncoderTrainingConfig = EncoderTrainingConfig()

    @model_validator(mode="after")
    def _towers_stand(self) -> Self:
        if self.text is None and (self.image is None or self.concept is None):
            raise ValueError("content.encoder needs text, or image together with concept (concepts are texts)")
        return self


class ContentCheckConfig(Settings):
    """How well the teacher tells topics apart, on a labelled sample; a ``min_*`` that is missed fails the check."""

    num_items: Annotated[int, Field(ge=2)] = 2000
    k: list[Positive] = [5, 20]  # nearest neighbours; gates look at the first
    num_bins: Annotated[int, Field(ge=2)] = 20
    min_auc_l1: Fraction | None = None
    min_auc_l2: Fraction | None = None
    min_precision_l1: Fraction | None = None
    min_precision_l2: Fraction | None = None


class ContentConfig(Settings):
    """The frozen teacher: a content embedding for each item of the catalogue.

    ``column``: the items table already carries it. ``transformers``: item text through a local transformers folder,
    a hub name, or ``package:NAME`` (a folder ``model`` inside an installed Python package). ``encoder``: the
    multimodal encoder that ``mtmh content train`` has trained.
    """

    kind: Literal["column", "transformers", "encoder"] = "column"
    model: str | None = None
    encoder: EncoderConfig | None = None
    max_tokens: Positive = 64
    batch_size: Positive = 64
    shard_items: Positive = 16_384  # ``encoder``: items embedded between two points that a killed run resumes from
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # ``encoder``: auto is bf16 autocast on GPUs, fp32 elsewhere
    check: ContentCheckConfig = ContentCheckConfig()

    @model_validator(mode="after")
    def _model_given(self) -> Self:
        if (self.kind == "transformers") != (self.model is not None):
            raise ValueError("content.model goes with content.kind = transformers, and only with it")
        if (self.kind == "encoder") != (self.encoder is not None):
            raise ValueError("content.encoder goes with content.kind = encoder, and only with it")
        return self


class HeadConfig(Settings):
    """One head and its loss: ``engagement_weight * L_e + relevance_weight * L_r`` (paper, equation 3)."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    engagement_weight: NonNegative = 1.0
    relevance_weight: NonNegative = 0.0

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if self.engagement_weight == 0.0 and self.relevance_weight == 0.0:
            raise ValueError(f"head {self.name!r} has no loss: give it an engagement_weight or a relevance_weight")
        return self


class ModelConfig(Settings):
    """The item tower and its heads. MTMH, MTSH, STMH and single-task differ in ``heads`` only."""

    embedding_dim: Annotated[int, Field(ge=4, multiple_of=4)] = 64
    feature_dims: dict[str, Annotated[int, Field(ge=4, multiple_of=4)]] = {}  # id features with another width
    embedding_dtype: Literal["fp32", "fp16"] = "fp32"
    dense_hidden: list[Positive] = [64]
    dense_dim: Positive = 32
    head_hidden: list[Positive] = [256]
    head_dim: Positive = 128
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

    @property
    def needs_teacher(self) -> bool:
        """Whether any head distils from the teacher."""
        return any(head.relevance_weight > 0.0 for head in self.heads)


class PropensityConfig(Settings):
    """Off-policy pair weight ``1 / (a + count(trigger)^b)`` (related-video paper), scaled to mean 1 over T1 events."""

    a: NonNegative = 1.0
    b: NonNegative = 0.5


class LossConfig(Settings):
    """InfoNCE and KL distillation over shared negatives (paper, equations 1 to 3)."""

    temperature: Annotated[float, Field(gt=0.0)] = 0.07
    teacher_temperature: Annotated[float, Field(gt=0.0)] = 0.07
    in_batch_negatives: bool = True
    num_uniform_negatives: Annotated[int, Field(ge=0)] = 2048  # of the global batch
    log_q: bool = True
    mask_history: bool = True
    history_mask_length: Positive = 100  # the last items of a history that are masked as accidental hits
    propensity: PropensityConfig | None = None
    chunk_rows: Positive = 256

    @model_validator(mode="after")
    def _has_negatives(self) -> Self:
        if not self.in_batch_negatives and self.num_uniform_negatives == 0:
            raise ValueError("loss: no negatives: turn on in_batch_negatives or set num_uniform_negatives")
        return self


ShardingType = Literal["data_parallel", "table_wise", "column_wise", "row_wise", "table_row_wise", "grid_shard"]


class ShardingConfig(Settings):
    """Constraints for TorchRec's planner; a table without one is placed by the planner."""

    default: ShardingType | None = None
    tables: dict[str, ShardingType] = {}


class PlanConfig(Settings):
    """A catalogue that is not prepared yet, for ``mtmh plan``; a dataset artifact takes precedence."""

    # Rows of each id feature's table, item_id among them, row 0 (unknown) included; item tables hold them as int32.
    rows: dict[str, Annotated[int, Field(ge=1, lt=2**31)]] = {}
    num_floats: Annotated[int, Field(ge=0)] = 0  # float features

    @field_validator("rows")
    @classmethod
    def _has_items(cls, rows: dict[str, int]) -> dict[str, int]:
        if rows and "item_id" not in rows:
            raise ValueError(f"plan.rows needs item_id, the feature of every dataset; got {', '.join(rows)}")
        return rows


class TrainingConfig(Settings):
    """One training run. ``batch_size`` counts pairs of the global batch, whatever the number of ranks."""

    batch_size: Positive = 6144
    num_shards: Positive = 12  # virtual data shards; the number of ranks must divide it
    shuffle_pairs: Positive = 262_144  # pairs of one shard that are shuffled together
    epochs: Positive = 1
    max_steps: Positive | None = None
    optimizer: Literal["rowwise_adagrad", "adagrad"] = "rowwise_adagrad"
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.05
    dense_learning_rate: Annotated[float, Field(gt=0.0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Positive = 500
    keep_checkpoints: Positive = 2
    log_every: Positive = 20
    prefetch_batches: Positive = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _batch_splits(self) -> Self:
        if self.batch_size % self.num_shards:
            raise ValueError(
                f"training.batch_size ({self.batch_size}) must be a multiple of training.num_shards ({self.num_shards})"
            )
        return self


class IndexConfig(Settings):
    """One faiss inverted-file index a head."""

    num_clusters: Positive | None = None  # None: about 4 * sqrt(items)
    train_sample: Positive = 262_144  # vectors that k-means sees
    iterations: Positive = 20


class RetrievalConfig(Settings):
    """Defaults of a request; each can change per request."""

    k: Positive = 30  # kept a trigger (K)
    k_ann: Positive = 1000  # candidates a head (K_ann)
    num_probes: Positive = 32  # clusters searched (C)
    alpha: Annotated[float, Field(ge=0.0, le=100.0)] = 50.0  # share of the engagement head, percent

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


class Config(Settings):
    """A whole recipe."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    paths: PathsConfig
    data: DataConfig
    pairs: PairsConfig = PairsConfig()
    content: ContentConfig = ContentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    sharding: ShardingConfig = ShardingConfig()
    plan: PlanConfig = PlanConfig()
    training: TrainingConfig = TrainingConfig()
    index: IndexConfig = IndexConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

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

    def model_dir(self, stage: Literal["checkpoints", "embeddings", "index", "evaluation"]) -> Path:
        """The folder of one stage of this model."""
        return self.paths.root / self.name / stage


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
        _apply_override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"recipe {recipe}: {problems}") from None


def _recipes() -> Any:
    return resources.files("mtmh") / "recipes"


def _yaml_names(folder: Any) -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _read_variant(name: str) -> dict[str, Any]:
    path = _recipes() / "variants" / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"no variant {name}: not one of {', '.join(variant_names())}")
    return cast(dict[str, Any], yaml.safe_load(path.read_text()))


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
        raise ValueError(f"no recipe {recipe}: not a file, and not one of {', '.join(recipe_names())}")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {recipe}: not valid YAML: {error}") from None
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


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override {override!r}: expected dotted.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r}: the value is not valid YAML: {error}") from None
    node = tree
    *parents, leaf = key.split(".")
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ValueError(f"override {override!r}: {parent} is a value, not a section")
        node = child
    node[leaf] = value
