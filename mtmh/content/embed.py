"""Embeds the catalogue with the frozen teacher: a column of the items table, item text, or a trained encoder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtmh.artifacts import Artifact, ArtifactWriter, open_artifact, write_artifact
from mtmh.config import Config, ContentConfig, decisive
from mtmh.data.arrays import unit_rows
from mtmh.data.content_store import EMBEDDINGS, join_content
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.row_file import create_array

if TYPE_CHECKING:
    from mtmh.content.shards import EmbeddingShards

COLUMN = "content_embedding"

_CHUNK_ITEMS = 65_536
_WITHOUT = "without_content"


def embed_content(config: Config, out: Path) -> Artifact:
    """Writes a content artifact: ``embeddings.npy`` [I, Dc], unit-length rows in item-index order.

    Rows are float32, those of a trained encoder float16. Where a model computes them this may run as one rank of
    torchrun.

    An item without content (no vector in the column, or no text) has a row of zeros; the summary counts them. Topics
    are evaluation labels and are never read here.

    Args:
        config: names the dataset; ``content`` chooses the teacher.
        out: folder of the artifact.

    Raises:
        ValueError: no dataset, no such column or model, or content that is not finite; the message says how to get it.
    """
    dataset = open_dataset(config.dataset_dir)
    recipe, decided, inputs = config.model_dump(mode="json"), decisive(config, "content"), {"dataset": dataset.artifact}
    content, device = config.content, config.training.device

    def commit(writer: ArtifactWriter) -> None:
        writer.commit(recipe, inputs, decisive=decided)

    if content.kind == "encoder":
        # Process groups and training's modules, which the other kinds do without.
        from mtmh.content.catalogue import embed_with_encoder

        inputs["encoder"] = open_artifact(config.encoder_dir, "encoder")
        embed_with_encoder(content, dataset, inputs["encoder"], config.media_dir, out, device, commit)
    elif content.kind == "transformers":
        _embed_texts(content, dataset, out, device, commit)
    else:
        with write_artifact(out, "content", config=recipe, decisive=decided, inputs=inputs) as writer:
            embeddings = _copy_column(dataset, writer.folder / EMBEDDINGS)
            without = sum(
                int(np.count_nonzero(~embeddings[start : start + _CHUNK_ITEMS].any(axis=1)))
                for start in range(0, len(embeddings), _CHUNK_ITEMS)
            )
            writer.summary |= _summary(content, dataset, writer.folder, embeddings.shape[1], without)
    return open_artifact(out, "content")


def _summary(content: ContentConfig, dataset: Dataset, folder: Path, dim: int, without: int) -> dict[str, Any]:
    """Facts of embeddings that stand in a folder, which `join_content` completes."""
    join_content(folder, dataset)
    if without == dataset.num_items:
        raise ValueError(f"{dataset.artifact.path}: no item has content (content.kind = {content.kind})")
    return {
        "kind": content.kind,
        "model": content.model,
        "num_items": dataset.num_items,
        "dim": dim,
        "num_items_without_content": without,
    }


def _copy_column(dataset: Dataset, path: Path) -> npt.NDArray[np.float32]:
    dim = dataset.summary.content_embedding_dim
    if dim is None:
        raise ValueError(
            f"{dataset.artifact.path}: the items have no column {COLUMN} (content.kind = column); name one in the"
            " recipe (data.columns.content_embedding), or embed item text with content.kind = transformers"
        )
    embeddings = create_array(path, np.float32, (dataset.num_items, dim))
    start = 0
    for batch in dataset.item_batches([COLUMN], _CHUNK_ITEMS):
        part = batch.column(COLUMN)
        valid = np.asarray(part.is_valid())
        vectors = np.zeros((len(part), dim), np.float32)
        vectors[valid] = np.asarray(part.flatten().cast(pa.float32())).reshape(-1, dim)
        if not np.isfinite(vectors).all():
            row = start + int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise ValueError(f"{dataset.artifact.path}: column {COLUMN}, row {row}: not finite numbers")
        embeddings[start : start + len(part)] = unit_rows(vectors)
        start += len(part)
    embeddings.flush()
    return embeddings


def _embed_texts(
    content: ContentConfig,
    dataset: Dataset,
    out: Path,
    device: Literal["auto", "cpu", "cuda"],
    commit: Callable[[ArtifactWriter], object],
) -> None:
    """As `embed_with_encoder`, with a model that is used as it comes."""
    import torch.distributed as dist  # and all that a column does without

    from mtmh.content.backbones import stamp_of_model
    from mtmh.content.shards import EmbeddingShards, progress_bar
    from mtmh.content.texts import TextTeacher
    from mtmh.distributed.ranks import join_ranks, on_first, writing_alone

    with join_ranks(device) as ranks, writing_alone(ranks, out):
        teacher = TextTeacher(
            content, lambda: dataset.items(["text"]).column("text").drop_null().to_pylist(), ranks.device
        )
        assert content.model is not None
        plan = {
            "dataset": dataset.artifact.manifest.digest,
            "model": content.model,
            "files": stamp_of_model(content.model, "content"),
            "max_tokens": content.max_tokens,
            "batch_size": content.batch_size,
        }
        parts = EmbeddingShards.plan(out, dataset.num_items, content.shard_items, plan, ranks)
        own = parts.own(ranks)
        with progress_bar(sum(len(parts.items(shard)) for shard in own), shown=ranks.is_first) as advance:
            for shard, texts in _texts_of(dataset, parts, frozenset(own)):
                embeddings = np.zeros((len(texts), teacher.dim), np.float32)
                for rows, vectors in teacher.embed(texts, int(parts.items(shard)[0])):
                    embeddings[rows] = vectors
                    advance(len(rows))
                without = int(np.count_nonzero(~embeddings.any(axis=1)))
                advance(without)
                parts.write(shard, embeddings, {_WITHOUT: without})
        dist.barrier()

        def finish() -> None:
            writer = ArtifactWriter(out, "content")
            writer.begin()
            counts, _ = parts.assemble(writer.folder / EMBEDDINGS, np.float32, teacher.dim)
            writer.summary |= _summary(content, dataset, writer.folder, teacher.dim, counts[_WITHOUT])
            commit(writer)
            shutil.rmtree(parts.folder)

        on_first(ranks, finish)


def _texts_of(dataset: Dataset, parts: EmbeddingShards, wanted: Set[int]) -> Iterator[tuple[int, pa.Array]]:
    """Texts of some shards, in their order; the table is gone through once and a shard of it held."""
    held, shard = pa.chunked_array([], pa.string()), 0
    for batch in dataset.item_batches(["text"], parts.shard_items):
        held = pa.chunked_array([*held.chunks, batch.column("text").cast(pa.string())])
        while shard < parts.num_shards and len(held) >= (size := len(parts.items(shard))):
            if shard in wanted:
                yield shard, held.slice(0, size).combine_chunks()
            held, shard = held.slice(size), shard + 1
