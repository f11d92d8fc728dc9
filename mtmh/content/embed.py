"""Embeds the catalogue with the frozen teacher: a column of the items table, item text, or a trained encoder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mtmh.artifacts import Artifact, open_artifact, write_artifact
from mtmh.config import BackboneConfig, Config, ContentConfig, decisive
from mtmh.content.backbones import Backbone, load_backbone
from mtmh.data.content_store import EMBEDDINGS
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.row_file import create_array

COLUMN = "content_embedding"

_CHUNK_ITEMS = 65_536
_SHORTEST_NORM = 1e-12


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
        without = int((np.einsum("id,id->i", embeddings, embeddings) == 0).sum())
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


def unit_rows(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows of unit length; a row of zeros stays one. [N, D] -> [N, D] float32."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.where(norms > _SHORTEST_NORM, vectors / np.maximum(norms, _SHORTEST_NORM), 0).astype(np.float32)


def _copy_column(dataset: Dataset, path: Path) -> npt.NDArray[np.float32]:
    dim = dataset.summary.content_embedding_dim
    if dim is None:
        raise ValueError(
            f"{dataset.artifact.path}: the items have no column {COLUMN} (content.kind = column); name one in the"
            " recipe (data.columns.content_embedding), or embed item text with content.kind = transformers"
        )
    column = dataset.items([COLUMN]).column(COLUMN)
    embeddings = create_array(path, np.float32, (dataset.num_items, dim))
    for start in range(0, dataset.num_items, _CHUNK_ITEMS):
        part = column.slice(start, _CHUNK_ITEMS).combine_chunks()
        valid = np.asarray(part.is_valid())
        vectors = np.zeros((len(part), dim), np.float32)
        vectors[valid] = np.asarray(part.flatten().cast(pa.float32())).reshape(-1, dim)
        if not np.isfinite(vectors).all():
            row = start + int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise ValueError(f"{dataset.artifact.path}: column {COLUMN}, row {row}: not finite numbers")
        embeddings[start : start + len(part)] = unit_rows(vectors)
    embeddings.flush()
    return embeddings


def _encode_texts(dataset: Dataset, config: ContentConfig, path: Path) -> npt.NDArray[np.float32]:
    assert config.model is not None
    texts = pc.utf8_trim_whitespace(dataset.items(["text"]).column("text").combine_chunks())
    backbone = load_backbone(
        "text", BackboneConfig(model=config.model), "content", lambda: texts.drop_null().to_pylist()
    )
    lengths = np.asarray(pc.fill_null(pc.utf8_length(texts), 0), np.int64)
    # Texts of like length share a batch, so that little is padding. The longest come first: a lack of memory shows at
    # once.
    order = np.argsort(-lengths, kind="stable")[: int((lengths > 0).sum())]
    embeddings = create_array(path, np.float32, (dataset.num_items, backbone.encoder.width))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = backbone.encoder.to(device).eval()
    columns = (
        TextColumn("embedding texts"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    begun = time.perf_counter()
    with Progress(*columns) as progress, torch.inference_mode():
        task = progress.add_task("embedding texts", total=len(order), rate="")
        for start in range(0, len(order), config.batch_size):
            rows = order[start : start + config.batch_size]
            tokens = _tokens(backbone, texts.take(pa.array(rows)).to_pylist(), config.max_tokens)
            pooled = encoder(**{name: tensor.to(device) for name, tensor in tokens.items()}).cpu().numpy()
            if not np.isfinite(pooled).all():
                raise ValueError(f"content.model {config.model}: not finite numbers for the text of item {rows[0]}")
            embeddings[rows] = unit_rows(pooled)
            rate = (start + len(rows)) / (time.perf_counter() - begun)
            progress.update(task, advance=len(rows), rate=f"{rate:,.0f} items/s")
    embeddings.flush()
    return embeddings


def _tokens(backbone: Backbone, texts: list[str], max_tokens: int) -> dict[str, Any]:
    """input_ids and attention_mask, [B, L] int64 each."""
    limit = min(max_tokens, backbone.preprocessor.model_max_length)
    encoded = backbone.preprocessor(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}
