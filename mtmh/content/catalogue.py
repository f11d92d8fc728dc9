"""Embeds the catalogue with a trained content encoder, shard by shard: any number of ranks, and no shard twice."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.distributed as dist

from mtmh.artifacts import Artifact, ArtifactWriter
from mtmh.config import ContentConfig
from mtmh.content.identity import identity_of_images
from mtmh.content.inputs import ItemReader, ReadItems
from mtmh.content.shards import EmbeddingShards, progress_bar
from mtmh.content.teacher import ContentFiles, encoder_config, open_teacher
from mtmh.content.train import autocast_dtype
from mtmh.data.content_store import EMBEDDINGS, join_content
from mtmh.data.dataset import Dataset
from mtmh.data.prefetch import prefetched
from mtmh.distributed.ranks import join_ranks, on_first, writing_alone
from mtmh.modules import ContentEncoder

logger = logging.getLogger(__name__)

_NAMED = 5  # broken images, in the summary
_PREFETCH = 4


def embed_with_encoder(
    content: ContentConfig,
    dataset: Dataset,
    encoder: Artifact,
    media_dir: Path,
    out: Path,
    device: Literal["auto", "cpu", "cuda"],
    commit: Callable[[ArtifactWriter], object],
) -> None:
    """Embeds every item with a trained encoder; alone, or as one rank of torchrun.

    Finished shards stand in ``<out>.parts`` until all are there. A run that was killed goes on with the shards that are
    missing, on any number of ranks. A missing or broken image and an empty text are counted and replaced by the
    encoder's stand-in; an item with neither has a row of zeros.

    Args:
        content: the settings of batches, shards and precision.
        dataset: the catalogue.
        encoder: artifact of the trained encoder.
        media_dir: of the simulated pictures, where the recipe names no others.
        out: the content artifact.
        device: as `join_ranks` takes it.
        commit: called by the first rank when the writer's folder is full.

    Raises:
        ValueError: images are not where the recipe says, no item has content, or an embedding is not finite.
    """
    with join_ranks(device) as ranks, writing_alone(ranks, out):
        files = ContentFiles.find(encoder_config(content), media_dir)
        plan = {
            "dataset": dataset.artifact.manifest.digest,
            "encoder": encoder.manifest.digest,
            "images": on_first(ranks, lambda: identity_of_images(encoder_config(content), files, dataset)),
            "max_tokens": content.max_tokens,
            "precision": content.precision,
        }
        parts = EmbeddingShards.plan(out, dataset.num_items, content.shard_items, plan, ranks)
        own = parts.own(ranks)
        teacher = open_teacher(encoder.path)
        reader = teacher.reader(dataset, files.images, content.max_tokens)
        embedder = ContentEmbedder(teacher.model.to(ranks.device), reader, content, ranks.device)
        with progress_bar(sum(len(parts.items(shard)) for shard in own), shown=ranks.is_first) as advance:
            for shard in own:
                done = embedder.embed(parts.items(shard), advance)
                parts.write(shard, done.rows.astype(np.float16), done.counts, done.broken[:_NAMED])
        dist.barrier()

        def finish() -> None:
            writer = ArtifactWriter(out, "content")
            writer.begin()
            writer.summary |= _assemble(parts, dataset, encoder.summary["dim"], writer.folder)
            commit(writer)
            shutil.rmtree(parts.folder)

        on_first(ranks, finish)


@dataclass(frozen=True)
class Embedded:
    """Embeddings of N items.

    Attributes:
        rows: [N, D] of unit length; zeros for an item without content.
        complete: [N] bool, whether the item has all that the encoder takes.
        counts: of what was missing or broken.
        broken: items whose image is broken.
    """

    rows: npt.NDArray[np.float32]
    complete: npt.NDArray[np.bool_]
    counts: Counter[str]
    broken: list[int]


class ContentEmbedder:
    """Embeds items in batches of like text length; reading and decoding run ahead in a thread.

    Args:
        model: on ``device``.
        reader: of the items.
        content: the settings of batches and precision.
        device: where the model computes.
    """

    def __init__(self, model: ContentEncoder, reader: ItemReader, content: ContentConfig, device: torch.device) -> None:
        self._model = model.eval()
        self._reader = reader
        self._batch_size = content.batch_size
        self._device = device
        self._dtype = autocast_dtype(content.precision, device)

    def embed(
        self,
        items: npt.NDArray[np.int64],
        advance: Callable[[int], None],
        *,
        use_text: bool = True,
        use_image: bool = True,
    ) -> Embedded:
        """Embeds items.

        Args:
            items: [N] item indices.
            advance: told how many items are done, batch by batch.
            use_text: with ``False``, texts are replaced by their stand-in.
            use_image: with ``False``, images are.

        Raises:
            ValueError: an embedding is not finite.
        """
        order = np.argsort(-self._reader.text_lengths(items), kind="stable")
        embeddings: npt.NDArray[np.float32] | None = None
        counts: Counter[str] = Counter()
        broken: list[int] = []
        complete = np.zeros(len(items), bool)
        with torch.inference_mode():
            for places, batch in prefetched(self._read(items, order), _PREFETCH):
                everyone = torch.ones(batch.inputs.num_rows, dtype=torch.bool)
                hidden = batch.inputs.without(
                    text=None if use_text else everyone, image=None if use_image else everyone
                )
                inputs = hidden.to(self._device)
                with torch.autocast(self._device.type, self._dtype or torch.bfloat16, enabled=self._dtype is not None):
                    embedded = self._model.embed_content(inputs)
                rows = embedded.float().cpu().numpy() * batch.has_content[:, None]
                if not np.isfinite(rows).all():
                    item = items[places[~np.isfinite(rows).all(axis=1)]][0]
                    raise ValueError(f"content encoder: the embedding of item index {item} is not finite")
                if embeddings is None:
                    embeddings = np.zeros((len(items), rows.shape[1]), np.float32)
                embeddings[places] = rows
                counts += batch.counts
                broken += batch.broken.tolist()
                complete[places] = batch.complete
                advance(len(places))
        assert embeddings is not None
        return Embedded(embeddings, complete, counts, broken)

    def _read(
        self, items: npt.NDArray[np.int64], order: npt.NDArray[np.int64]
    ) -> Iterator[tuple[npt.NDArray[np.int64], ReadItems]]:
        for start in range(0, len(order), self._batch_size):
            places = order[start : start + self._batch_size]
            yield places, self._reader.read(items[places])


def _assemble(parts: EmbeddingShards, dataset: Dataset, dim: int, folder: Path) -> dict[str, Any]:
    """Puts the shards together into one file; returns the facts of the content artifact."""
    counts, broken = parts.assemble(folder / EMBEDDINGS, np.float16, dim)
    join_content(folder, dataset)
    without = counts["without_content"]
    if without == dataset.num_items:
        raise ValueError(f"{dataset.artifact.path}: no item has a text or an image that the encoder takes")
    for name, message in (
        ("broken_images", "have a broken image: the stand-in takes its place"),
        ("empty_texts", "have no text: the stand-in takes its place"),
        ("blank_images", "have an image of one colour, which says nothing"),
    ):
        if counts[name]:
            logger.warning("%d of %d items %s", counts[name], dataset.num_items, message)
    return {
        "kind": "encoder",
        "num_items": dataset.num_items,
        "dim": dim,
        "num_items_without_content": without,
        "num_empty_texts": counts["empty_texts"],
        "num_missing_images": counts["missing_images"],
        "num_broken_images": counts["broken_images"],
        "num_blank_images": counts["blank_images"],
        "broken_images": dataset.items(["item_id"]).column(0).take(pa.array(broken[:_NAMED], pa.int64())).to_pylist(),
    }
