"""A content encoder with all it needs to be used, and its artifact: config files, tokenizers and safetensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from mtmh.artifacts import Artifact, open_artifact
from mtmh.config import ContentConfig, EncoderConfig
from mtmh.content.backbones import Backbone, Modality, describe_backbone, load_backbone
from mtmh.content.images import open_images
from mtmh.content.inputs import ItemReader
from mtmh.data.dataset import Dataset
from mtmh.modules import ContentEncoder
from mtmh.prepare.sources.synthetic_media import CONCEPTS, IMAGES

WEIGHTS = Path("model.safetensors")
TowerName = Literal["text", "image", "concept"]
TOWERS: dict[TowerName, Modality] = {"text": "text", "image": "image", "concept": "text"}


@dataclass(frozen=True)
class Teacher:
    """A content encoder and the backbones it is made of.

    Attributes:
        model: the network.
        backbones: by tower; ``concept`` only if it is not shared with ``text``.
    """

    model: ContentEncoder
    backbones: dict[TowerName, Backbone]

    @property
    def concept_tokenizer(self) -> Any:
        """The tokenizer of the concept tower."""
        return (self.backbones.get("concept") or self.backbones["text"]).preprocessor

    def reader(self, dataset: Dataset, images: Path | None, max_tokens: int) -> ItemReader:
        """A reader of the dataset's items for this encoder.

        Args:
            dataset: the catalogue.
            images: where its pictures are, as `ContentFiles` has it.
            max_tokens: longer texts are cut.

        Raises:
            ValueError: the images are not there.
        """
        text, image = self.backbones.get("text"), self.backbones.get("image")
        texts = dataset.items(["text"]).column("text").combine_chunks() if text else None
        opened = open_images(dataset, images) if image else None
        return ItemReader(texts, text, image, opened, max_tokens)

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the files of the artifact; returns the facts for its manifest that ``open_teacher`` needs."""
        for tower, backbone in self.backbones.items():
            backbone.save_description(folder / tower)
        save_model(self.model, str(folder / WEIGHTS))
        first = self.model.fusion.mlp
        return {
            "pooling": {tower: backbone.encoder.pooling for tower, backbone in self.backbones.items()},
            "hidden": [layer.out_features for layer in first if isinstance(layer, torch.nn.Linear)][:-1],
            "dim": first[-1].out_features,
            "num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }


def encoder_config(content: ContentConfig) -> EncoderConfig:
    """The recipe's encoder.

    Raises:
        ValueError: the recipe has none.
    """
    if content.encoder is None:
        raise ValueError(f"content.kind is {content.kind}: only kind = encoder has an encoder to train and use")
    return content.encoder


@dataclass(frozen=True)
class ContentFiles:
    """Pictures and concepts of a catalogue: those that the recipe names, else those of its simulated media.

    Attributes:
        images: where the pictures are; ``None``: the items' ``image`` is a path as it stands.
        concepts: the table of concepts, if there is one.
        media: what one of the two comes from, if it does.
        images_of_media: whether the pictures do.
    """

    images: Path | None
    concepts: Path | None
    media: Artifact | None
    images_of_media: bool

    @classmethod
    def find(cls, encoder: EncoderConfig, media_dir: Path) -> Self:
        """Looks for the media only where the recipe leaves something to them.

        Raises:
            ValueError: there is something else in the place of the media.
        """
        needed = encoder.images is None or encoder.concepts is None
        media = open_artifact(media_dir, "media") if needed and media_dir.exists() else None
        return cls(
            images=encoder.images or (media.path / IMAGES if media else None),
            concepts=encoder.concepts or (media.path / CONCEPTS if media else None),
            media=media,
            images_of_media=encoder.images is None and media is not None,
        )


def build_teacher(config: EncoderConfig, seed: int, words: Callable[[], Iterable[str]]) -> Teacher:
    """The encoder as training finds it: pretrained backbones, new layers at random weights drawn from ``seed``.

    Args:
        config: which backbones.
        seed: of all random weights.
        words: texts from which ``random:`` text encoders take their vocabulary.

    Raises:
        ValueError: a backbone cannot be had.
    """
    torch.manual_seed(seed)
    backbones: dict[TowerName, Backbone] = {}
    for tower, kind in TOWERS.items():
        backbone = getattr(config, tower)
        if backbone is not None:
            backbones[tower] = load_backbone(kind, backbone, f"content.encoder.{tower}", words)
    return _assemble(backbones, config.hidden, config.dim)


def open_teacher(path: Path) -> Teacher:
    """Opens an encoder artifact, ready to embed.

    Raises:
        ValueError: no encoder artifact, or weights that do not fit its description.
    """
    artifact = open_artifact(path, "encoder")
    summary = artifact.summary
    backbones: dict[TowerName, Backbone] = {
        tower: describe_backbone(kind, path / tower, summary["pooling"][tower])
        for tower, kind in TOWERS.items()
        if tower in summary["pooling"]
    }
    teacher = _assemble(backbones, summary["hidden"], summary["dim"])
    try:
        load_model(teacher.model, str(path / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path / WEIGHTS}: does not fit the architecture beside it: {error}") from None
    teacher.model.eval()
    return teacher


def catalogue_words(dataset: Dataset, concepts: Iterable[str]) -> Callable[[], Iterator[str]]:
    """All texts of the items and all concepts, for the vocabulary of ``random:`` text encoders."""
    return partial(_texts, dataset, concepts)


def _texts(dataset: Dataset, concepts: Iterable[str]) -> Iterator[str]:
    for chunk in dataset.items(["text"]).column("text").chunks:
        yield from (text for text in chunk.to_pylist() if text)
    yield from concepts


def _assemble(backbones: dict[TowerName, Backbone], hidden: list[int], dim: int) -> Teacher:
    encoders = {tower: backbones[tower].encoder if tower in backbones else None for tower in TOWERS}
    return Teacher(ContentEncoder(**encoders, hidden=hidden, dim=dim), backbones)
