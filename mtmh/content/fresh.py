"""The teacher for items that come after training: their texts and pictures become content embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from mtmh.artifacts import MANIFEST, open_artifact
from mtmh.config import ContentConfig
from mtmh.content.catalogue import ContentEmbedder
from mtmh.content.images import named_images
from mtmh.content.inputs import ItemReader
from mtmh.content.teacher import ContentFiles, encoder_config, open_teacher
from mtmh.content.texts import TextTeacher
from mtmh.data.arrays import Floats
from mtmh.distributed.ranks import chosen_device


class FreshContent:
    """Embeds fresh items with the frozen teacher. For one thread at a time.

    Attributes:
        dim: width ``Dc``.
        fields: of an item, which it looks at: ``text``, and ``image`` where the teacher sees pictures.
    """

    def __init__(self, embed: Callable[[dict[str, pa.Array]], Floats], dim: int, fields: tuple[str, ...]) -> None:
        self._embed = embed
        self.dim = dim
        self.fields = fields

    def __call__(self, items: pa.Table) -> Floats:
        """Embeds items.

        Args:
            items: N rows with the columns ``fields``, strings or null.

        Returns:
            [N, Dc] of unit length; zeros for an item that has nothing to look at.
        """
        return self._embed({field: items.column(field).combine_chunks() for field in self.fields})


def open_fresh_content(
    content: ContentConfig,
    content_dir: Path,
    encoder_dir: Path,
    media_dir: Path,
    device: Literal["auto", "cpu", "cuda"],
) -> FreshContent | None:
    """Opens the teacher of a recipe for fresh items.

    Args:
        content: the recipe's teacher.
        content_dir: of the catalogue's content embeddings; where they are, they must be this teacher's.
        encoder_dir: of the trained encoder, for ``content.kind = encoder``.
        media_dir: of the simulated pictures, where the recipe names no others.
        device: ``training.device``, for texts; an encoder computes on the CPU.

    Returns:
        the teacher; None where ``content.kind`` is ``column``: embeddings come with the items.

    Raises:
        ValueError: the teacher is not there, the content embeddings are another one's, or the device is not there.
    """
    if content.kind == "column":
        return None
    encoder = open_artifact(encoder_dir, "encoder") if content.kind == "encoder" else None
    if (content_dir / MANIFEST).is_file():
        made = open_artifact(content_dir, "content")
        own = {"kind": content.kind, "model": content.model}
        other = {name: made.summary.get(name) for name in own}
        if other != own or (encoder and made.manifest.inputs.get("encoder") != encoder.manifest.digest):
            raise ValueError(
                f"{content_dir}: made by another teacher than the recipe's (content.kind = {content.kind})"
            )
    if encoder is None:
        texts = TextTeacher(content, _no_words, chosen_device(device))
        return FreshContent(lambda columns: _embed_texts(texts, columns["text"]), texts.dim, ("text",))
    teacher = open_teacher(encoder_dir)
    text, image = (teacher.backbones.get(name) for name in ("text", "image"))
    images = ContentFiles.find(encoder_config(content), media_dir).images

    def embed(columns: dict[str, pa.Array]) -> Floats:
        opened = named_images(columns["image"], images) if image else None
        reader = ItemReader(columns.get("text"), text, image, opened, content.max_tokens)
        embedder = ContentEmbedder(teacher.model, reader, content, torch.device("cpu"))
        items = np.arange(len(next(iter(columns.values()))))
        return embedder.embed(items, lambda _: None).rows

    fields = tuple(name for name, backbone in (("text", text), ("image", image)) if backbone)
    return FreshContent(embed, int(encoder.summary["dim"]), fields)


def _no_words() -> list[str]:
    raise ValueError("content.model random:...: its vocabulary is that of the catalogue, so it embeds no fresh items")


def _embed_texts(teacher: TextTeacher, texts: pa.Array) -> Floats:
    found = np.zeros((len(texts), teacher.dim), np.float32)
    for rows, vectors in teacher.embed(texts):
        found[rows] = vectors
    return found
