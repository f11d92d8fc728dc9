"""Embeds the catalogue with the frozen teacher: a column of the items table, item text, or a trained encoder."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mtmh.artifacts import Artifact, open_artifact, write_artifact
from mtmh.config import Config, ContentConfig, decisive
from mtmh.data.arrays import unit_rows
from mtmh.data.content_store import EMBEDDINGS, join_content
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.row_file import create_array

COLUMN = "content_embedding"

_CHUNK_ITEMS = 65_536


def embed_content(config: Config, out: Path) -> Artifact:
    """Writes a content artifact: ``embeddings.npy`` [I, Dc], unit-length rows in item-index order.

    Rows are float32, those of a trained encoder float16. With a trained encoder this may run as one rank of torchrun.

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
    if config.content.kind == "encoder":
        # Process groups and training's modules, which the other kinds do without.
        from mtmh.content.catalogue import embed_with_encoder

        inputs["encoder"] = open_artifact(config.encoder_dir, "encoder")
        embed_with_encoder(
            config.content,
            dataset,
            inputs["encoder"],
            config.media_dir,
            out,
            config.training.device,
            lambda writer: writer.commit(recipe, inputs, decisive=decided),
        )
        return open_artifact(out, "content")
    with write_artifact(out, "content", config=recipe, decisive=decided, inputs=inputs) as writer:
        path = writer.folder / EMBEDDINGS
        if config.content.kind == "column":
            embeddings = _copy_column(dataset, path)
        else:
            embeddings = _encode_texts(dataset, config.content, path)
        join_content(writer.folder, dataset)
        without = sum(
            int(np.count_nonzero(~embeddings[start : start + _CHUNK_ITEMS].any(axis=1)))
            for start in range(0, len(embeddings), _CHUNK_ITEMS)
        )
        if without == len(embeddings):
            raise ValueError(f"{dataset.artifact.path}: no item has content (content.kind = {config.content.kind})")
        writer.summary |= {
            "kind": config.content.kind,
            "model": config.content.model,
            "num_items": dataset.num_items,
            "dim": embeddings.shape[1],
            "num_items_without_content": without,
        }
    return open_artifact(out, "content")


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


def _encode_texts(dataset: Dataset, config: ContentConfig, path: Path) -> npt.NDArray[np.float32]:
    from mtmh.content.texts import TextTeacher  # torch and transformers, which a column does without

    texts = dataset.items(["text"]).column("text").combine_chunks()
    teacher = TextTeacher(config, lambda: texts.drop_null().to_pylist())
    embeddings = create_array(path, np.float32, (dataset.num_items, teacher.dim))
    columns = (
        TextColumn("embedding texts"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    begun, done = time.perf_counter(), 0
    with Progress(*columns) as progress:
        task = progress.add_task("embedding texts", total=dataset.num_items - texts.null_count, rate="")
        for rows, vectors in teacher.embed(texts):
            embeddings[rows] = vectors
            done += len(rows)
            rate = done / (time.perf_counter() - begun)
            progress.update(task, completed=done, rate=f"{rate:,.0f} items/s")
        progress.update(task, total=done)
    embeddings.flush()
    return embeddings
