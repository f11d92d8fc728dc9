"""Compaction: one new version out of the published one, with all that was added and removed since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mtmh.artifacts import link_folder, open_artifact
from mtmh.config import Config, decisive
from mtmh.data.row_file import create_array
from mtmh.distributed.ranks import join_ranks
from mtmh.index.artifact import ITEMS, PRERANKER, IndexSummary
from mtmh.index.item_store import BATCH_ROWS, StoredItems, write_batches, write_order
from mtmh.index.versions import new_version, publish
from mtmh.index.write import IndexRecord, Source, write_index
from mtmh.index.writers import scratch_folder, writing
from mtmh.live.live_index import LiveIndex
from mtmh.live.segments import merge_segments
from mtmh.preranking.export import write_rows
from mtmh.retrieval.open_preranker import LearnedPreranker
from mtmh.retrieval.retriever import Retriever
from mtmh.tower.artifact import TOWER, vectors_file

_COPIED_ROWS = 65_536


def compact(config: Config) -> Path:
    """Builds and publishes a version of the items that are there now, removed ones included: these stay triggers.

    Vectors are taken as they are; the tower and the learned preranker go along, and who ranks stays the same, whatever
    the recipe says by now. Items that come or go meanwhile are applied to the new version like to any other. The
    changes stay on disk as one segment: a version that is built from data later takes them over, and so does one that
    is rolled back to.

    Args:
        config: ``index`` sets clusters, storage and the gate, ``retrieval`` the probes that recall is measured with.

    Returns:
        Folder of the version; the published one, if nothing was added or removed since it was built.

    Raises:
        BelowGateError: a head's recall is below the gate.
        ValueError: nothing is published, a file is damaged, or another version was published meanwhile.
    """
    index_dir = config.model_dir("index")
    live = LiveIndex(index_dir, config.retrieval, config.index.milvus)
    base, through, retriever = live.folder, live.change, live.retriever
    artifact = open_artifact(base, "index")
    before = IndexSummary.model_validate(artifact.summary)
    if through == before.segments_through:
        return base
    preranker, catalogue = _learned(retriever), retriever.catalogue
    rows = catalogue.latest

    def finish(folder: Path) -> dict[str, Any]:
        stored = StoredItems.of(catalogue.stored(rows))
        write_batches(folder / ITEMS, stored.table.to_batches(BATCH_ROWS))
        write_order(folder, stored.order, stored.ids)
        if (base / TOWER).is_dir():
            link_folder(base / TOWER, folder / TOWER)
        if preranker is not None:
            write_rows(preranker.ranker, base / PRERANKER, rows, folder / PRERANKER)
        of_dataset = artifact.manifest.inputs.get("dataset", before.of_dataset)
        return {"tower": before.tower, "segments_through": through, "of_dataset": of_dataset}

    with join_ranks("cpu") as ranks, scratch_folder(index_dir) as scratch:
        if ranks.world_size != 1:
            raise ValueError(f"compaction runs in one process, not in {ranks.world_size}")
        for head in retriever.heads:
            vectors = create_array(scratch / vectors_file(head), np.float32, (len(rows), before.dim))
            for start in range(0, len(rows), _COPIED_ROWS):
                part = slice(start, start + _COPIED_ROWS)
                vectors[part] = retriever.vectors[head][rows[part]]
            vectors.flush()
        version = new_version(index_dir)
        ranked_by = {f"retrieval.{name}": getattr(before.ranked_by, name) for name in ("preranker", "sorter")}
        write_index(
            Source(scratch, retriever.heads, before.dim, len(rows), before.id_type),
            config.index,
            version,
            ranks,
            IndexRecord(config.model_dump(mode="json"), decisive(config, "index") | ranked_by, {"index": artifact}),
            finish,
            ranked_by=before.ranked_by,
            num_probes=config.retrieval.num_probes,
            seed=config.seed,
        )
    index = config.index
    published = publish(
        version, min_recall=index.min_recall, keep=index.keep_versions, over=base.name, milvus=index.milvus
    )
    with writing(index_dir):
        merge_segments(index_dir, through)
    return published


def _learned(retriever: Retriever) -> LearnedPreranker | None:
    rankers = (retriever.preranker, retriever.sorter)
    return next((ranker for ranker in rankers if isinstance(ranker, LearnedPreranker)), None)
