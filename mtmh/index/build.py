"""Builds the index artifact: one inverted file a head and what serving needs beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from rich.progress import Progress

from mtmh.artifacts import Artifact, open_artifact, write_artifact
from mtmh.config import Config
from mtmh.data.arrays import open_array
from mtmh.data.dataset import open_dataset
from mtmh.index.layout import ITEMS, AnnRecall, EmbeddingsSummary, IndexSummary, index_file, vectors_file
from mtmh.index.vector_index import ExactIndex, IvfIndex

DISPLAY_COLUMNS = ["item_id", "text", "topic_l1", "topic_l2", "train_count"]

_RECALL_K = 100
_RECALL_QUERIES = 1000


def build_index(config: Config, out: Path) -> Artifact:
    """Writes an index artifact from the embeddings of a model.

    It holds ``<head>.faiss``, ``<head>.npy`` (embeddings, for exact search and scoring) and ``items.parquet`` (ids and
    display columns). The manifest records each head's ANN recall against exact search.

    Args:
        config: names dataset and embeddings; its ``index`` section sets the clusters.
        out: folder of the artifact.

    Raises:
        ValueError: an input is missing or belongs to another dataset, or more clusters than items.
    """
    dataset = open_dataset(config.dataset_dir)
    embeddings = open_artifact(config.model_dir("embeddings"), "embeddings")
    if embeddings.manifest.inputs.get("dataset") != dataset.artifact.manifest.digest:
        raise ValueError(
            f"{embeddings.path}: embeddings of another dataset than {dataset.artifact.path}; run mtmh embed again"
        )
    made = EmbeddingsSummary.model_validate(embeddings.summary)
    inputs = {"dataset": dataset.artifact, "embeddings": embeddings}
    clusters, recall = 0, {}
    with (
        write_artifact(out, "index", config=config.model_dump(mode="json"), inputs=inputs) as writer,
        Progress(transient=True) as progress,
    ):
        for head in progress.track(made.heads, description="clustering and filing every head"):
            file = vectors_file(head)
            vectors = open_array(embeddings.path / file, np.float32, (made.num_items, made.dim))
            index = IvfIndex.build(
                vectors,
                num_clusters=config.index.num_clusters,
                train_sample=config.index.train_sample,
                iterations=config.index.iterations,
                seed=config.seed,
            )
            index.save(writer.folder / index_file(head))
            shutil.copyfile(embeddings.path / file, writer.folder / file)
            clusters = index.num_clusters
            recall[head] = ann_recall(index, vectors, config.retrieval.num_probes, config.seed)
        pq.write_table(dataset.items(DISPLAY_COLUMNS), writer.folder / ITEMS)
        writer.summary |= IndexSummary(
            heads=made.heads,
            dim=made.dim,
            num_items=made.num_items,
            id_type=dataset.summary.id_type,
            num_clusters=clusters,
            ann_recall=recall,
        ).model_dump()
    return open_artifact(out, "index")


def ann_recall(index: IvfIndex, vectors: npt.NDArray[np.float32], num_probes: int, seed: int) -> AnnRecall:
    """Measures the index against exact search, with sampled items as queries."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(vectors), min(_RECALL_QUERIES, len(vectors)), replace=False))
    queries, k = vectors[rows], min(_RECALL_K, len(vectors))
    _, exact = ExactIndex.build(vectors).search(queries, k)
    _, found = index.search(queries, k, num_probes)
    hits = _sorted_overlap(exact, found)
    return AnnRecall(k=k, num_probes=num_probes, num_queries=len(rows), recall=float(hits / exact.size))


def _sorted_overlap(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> int:
    """Items that both [Q, k] arrays hold in the same row."""
    width = int(max(a.max(), b.max())) + 2
    rows = np.arange(len(a))[:, None] * width
    return int(np.isin((a + rows)[a >= 0], (b + rows)[b >= 0]).sum())
