"""The build-index stage: an index out of the embeddings of a model and what goes along, and its publication."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtmh.artifacts import MANIFEST, Artifact, link_folder, open_artifact
from mtmh.config import Config, RetrievalConfig, decisive
from mtmh.data import schema
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.id_order import IdOrder
from mtmh.data.ids import raw_ids
from mtmh.data.parquet import open_parquet
from mtmh.distributed.ranks import join_ranks, on_first
from mtmh.index import versions
from mtmh.index.artifact import ITEM_FEATURES, ITEMS, PRERANKER, RankedBy
from mtmh.index.item_store import BATCH_ROWS, write_batches, write_order
from mtmh.index.write import IndexRecord, Source, write_index
from mtmh.tower.artifact import EmbeddingsSummary
from mtmh.tower.export import write_tower

logger = logging.getLogger(__name__)

DISPLAY_COLUMNS = ["item_id", "text", "image", "topic_l1", "topic_l2", "train_count", "first_seen"]


def build_index(config: Config, out: Path) -> Artifact:
    """Writes an index artifact from the embeddings of a model; alone, or as one rank of torchrun.

    k-means is trained on a sample that all ranks read together; every rank files shards of the catalogue and merges
    runs of lists. No process holds more than the sample, a shard, or a run, and the files are the same on any number
    of ranks. ``artifact.py`` names the files. The manifest records each head's recall against exact search, at the
    number of probes that the recipe sets or that the build finds to be enough.

    Args:
        config: names dataset and embeddings; its ``index`` section sets clusters and storage.
        out: folder of the artifact, on a disk that all ranks see; the same on all.

    Raises:
        ValueError: an input is missing or belongs to another dataset or model, or settings that do not fit the
            catalogue.
    """
    with join_ranks("cpu") as ranks:
        dataset = open_dataset(config.dataset_dir)
        embeddings = open_artifact(config.model_dir("embeddings"), "embeddings")
        if embeddings.manifest.inputs.get("dataset") != dataset.artifact.manifest.digest:
            raise ValueError(
                f"{embeddings.path}: embeddings of another dataset than {dataset.artifact.path}; run mtmh embed again"
            )
        inputs = {"dataset": dataset.artifact, "embeddings": embeddings}
        preranker = _open_preranker(config.model_dir("preranker"), config.retrieval, inputs)
        inputs |= {"preranker": preranker} if preranker is not None else {}
        made = EmbeddingsSummary.model_validate(embeddings.summary)

        def finish(folder: Path) -> dict[str, Any]:
            _write_items(dataset, folder)
            if preranker is not None:  # its own: the recipe's is replaced when it is trained again
                preranker.verify()
                link_folder(preranker.path, folder / PRERANKER)
            return {
                "tower": write_tower(
                    folder,
                    config.model_dir("checkpoints"),
                    config.content_dir,
                    dataset,
                    embeddings,
                    tables=config.index.tower,
                    seed=config.seed,
                )
            }

        sorter = config.retrieval.sorted_by
        ranked_by = RankedBy(
            preranker=config.retrieval.preranker,
            sorter="head-score" if sorter == "learned" and preranker is None else sorter,
            temperature=config.loss.temperature,
        )

        return write_index(
            Source(embeddings.path, made.heads, made.dim, made.num_items, dataset.summary.id_type),
            config.index,
            out,
            ranks,
            IndexRecord(config.model_dump(mode="json"), decisive(config, "index"), inputs),
            finish,
            ranked_by=ranked_by,
            num_probes=config.retrieval.num_probes,
            seed=config.seed,
        )


def build_version(config: Config, *, publish: bool = True) -> Path:
    """Builds an index from the recipe's embeddings and makes it the published one; alone, or as one rank of torchrun.

    Args:
        config: the recipe.
        publish: with ``False`` the version stays unpublished, and its recall is not compared with the gate.

    Returns:
        Folder of the version.

    Raises:
        BelowGateError: a head's ANN recall is below ``index.min_recall``; the version that was published stays so.
        ValueError: an input is missing or does not fit.
    """
    settings = config.index
    with join_ranks("cpu") as ranks:
        version = on_first(ranks, lambda: versions.new_version(config.model_dir("index")))
        try:
            build_index(config, version)
        except BaseException:
            if ranks.is_first and not any(version.iterdir()):  # the name that was reserved
                version.rmdir()
            raise
        if not publish:
            return version
        return on_first(
            ranks,
            lambda: versions.publish(
                version, min_recall=settings.min_recall, keep=settings.keep_versions, milvus=settings.milvus
            ),
        )


def _write_items(dataset: Dataset, folder: Path) -> None:
    """Writes what serving wants of the items."""
    path = dataset.artifact.path
    write_batches(folder / ITEMS, dataset.item_batches(DISPLAY_COLUMNS, BATCH_ROWS))
    if (path / schema.ITEM_FEATURES).is_file():
        write_batches(folder / ITEM_FEATURES, open_parquet(path / schema.ITEM_FEATURES).iter_batches(BATCH_ROWS))
    known = (path / schema.RAW_IDS).is_file()  # not of datasets that were prepared before there were raw ids
    raw = dataset.item_table.raw_ids if known else raw_ids(dataset.item_ids)
    write_order(folder, IdOrder.of(raw), raw if dataset.summary.id_type == "int64" else None)


def _open_preranker(folder: Path, settings: RetrievalConfig, inputs: Mapping[str, Artifact]) -> Artifact | None:
    """The learned preranker of a recipe; None: nothing is ranked by it, or it was to sort and is not there.

    Raises:
        ValueError: there is none, or it was trained on something else than the index is built from.
    """
    if not settings.needs_preranker:
        return None
    if settings.preranker != "learned" and not (folder / MANIFEST).is_file():
        logger.warning(
            "no preranker in %s: answers will be sorted by similarity; for better ones call mtmh train-preranker, then"
            " mtmh build-index again",
            folder,
        )
        return None
    found = open_artifact(folder, "preranker")
    for name, artifact in inputs.items():
        # Without the heads' embeddings as inputs it fits those of any model.
        if found.manifest.inputs.get(name, artifact.manifest.digest) != artifact.manifest.digest:
            raise ValueError(
                f"{found.path}: of another {name} artifact than {artifact.path}; train the preranker again"
            )
    return found
