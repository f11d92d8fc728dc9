"""Settings of the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mtmh.config.base import Decides, Fraction, NonNegative, Positive, RunLength, Settings


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


class EncoderTrainingConfig(RunLength):
    """Content against concepts, contrastive. ``batch_size`` counts pairs of the global batch."""

    batch_size: Positive = 256
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3  # of the new layers
    backbone_learning_rate: Annotated[float, Field(gt=0.0)] = 2e-5
    weight_decay: NonNegative = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(gt=0.0)] = 0.07
    source_weights: dict[str, NonNegative] = {}  # of concepts by their source; a source not named here weighs 1
    modality_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2  # items that lose one modality, trains stand-ins
    gradient_checkpointing: Annotated[bool, Decides()] = False
    checkpoint_every: Annotated[Positive, Decides()] = 500
    log_every: Annotated[Positive, Decides()] = 20


class EncoderConfig(Settings):
    """A multimodal teacher: a text encoder, an image encoder or both, fused and trained against concepts.

    ``images``: where the items' images are: a folder or a tar, in which the items' ``image`` is a file name, or a
    Parquet file with columns ``item_id`` and ``image`` (bytes). ``concepts``: a Parquet file with columns ``item_id``,
    ``concept`` and ``source``, and perhaps ``timestamp``, by which rows of the test period are left out. Without them,
    those of the recipe's media (``mtmh content simulate``) if there are any; without those, ``image`` is a path as it
    stands.
    """

    text: BackboneConfig | None = None
    image: BackboneConfig | None = None
    concept: BackboneConfig | None = None  # None: the text encoder is shared
    hidden: list[Positive] = [512]
    dim: Positive = 128
    images: Annotated[Path | None, Decides("encoder", "content", "check")] = None
    concepts: Path | None = None
    training: Annotated[EncoderTrainingConfig, Decides("encoder")] = EncoderTrainingConfig()

    @model_validator(mode="after")
    def _towers_stand(self) -> Self:
        if self.text is None and (self.image is None or self.concept is None):
            raise ValueError("content.encoder needs text, or image together with concept (concepts are texts)")
        return self


class ContentCheckConfig(Settings):
    """Settings of the teacher's check on a labelled sample of the catalogue; a ``min_*`` that is missed fails it."""

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

    ``storage``: where the embeddings are while the item tower trains: in a file that each host maps (``mapped``), or in
    one more table, cut by rows over the ranks and looked up with the others, so that no host has all (``table``).
    """

    kind: Literal["column", "transformers", "encoder"] = "column"
    model: str | None = None
    encoder: Annotated[EncoderConfig | None, Decides("encoder", "check")] = None
    max_tokens: Positive = 64  # of a text; the rest is cut
    batch_size: Annotated[Positive, Decides("content", "check")] = 64  # items encoded at a time
    # Items embedded between two points that a killed run resumes from; texts of one shard share batches.
    shard_items: Annotated[Positive, Decides("content")] = 16_384
    storage: Annotated[Literal["mapped", "table"], Decides()] = "mapped"
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # ``encoder``: auto is bf16 autocast on GPUs, fp32 elsewhere
    check: Annotated[ContentCheckConfig, Decides("check")] = ContentCheckConfig()

    @model_validator(mode="after")
    def _model_given(self) -> Self:
        if (self.kind == "transformers") != (self.model is not None):
            raise ValueError("content.model goes with content.kind = transformers, and only with it")
        if (self.kind == "encoder") != (self.encoder is not None):
            raise ValueError("content.encoder goes with content.kind = encoder, and only with it")
        return self
