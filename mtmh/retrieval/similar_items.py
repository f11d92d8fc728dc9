"""Writes the answers of every item as Parquet shards, for a key-value store: on any number of ranks, no shard twice."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress

from mtmh.artifacts import Artifact, ArtifactWriter, link_file, write_atomically
from mtmh.config import Config
from mtmh.data.arrays import Indices, ItemId
from mtmh.distributed.ranks import join_ranks, on_first
from mtmh.retrieval.catalogue import TOPICS
from mtmh.retrieval.query import Query, QueryPlan
from mtmh.retrieval.retriever import Retriever

_BATCH = 1024  # triggers that are searched as one
_PLAN = "plan.json"
_SHOWN = ("item_id", *TOPICS)


def write_similar_items(
    config: Config,
    retriever: Retriever,
    index: Artifact,
    out: Path,
    *,
    k: int | None = None,
    alpha: float | None = None,
    items: Sequence[ItemId] | None = None,
    shard_items: int = 50_000,
) -> Artifact:
    """Writes ``part-NNNNNN.parquet``: one row an item, with the list that ``retrieve`` answers; alone, or as one rank.

    Columns: ``item_id``, ``topic_l1``, ``topic_l2``, and ``similar``, a list of {``item_id``, ``head``, ``score``,
    ``similarity``, ``topic_l1``, ``topic_l2``}. Finished shards stand in ``<out>.parts`` until all are there; a run
    that was killed goes on with those that are missing, on any number of ranks.

    Args:
        config: the recipe, for the record.
        retriever: over ``index`` with what was added and removed since.
        index: the published version.
        out: folder of the artifact, which all ranks see.
        k: answers an item; None: ``retrieval.k``.
        alpha: percent from the engagement head; None: ``retrieval.alpha``.
        items: ids, in the order of their rows; None: all that may be answers.
        shard_items: items of a shard.

    Raises:
        ValueError: an unknown item, or k, alpha or ``out`` do not fit.
    """
    catalogue = retriever.catalogue
    if items is None:
        answerable = catalogue.answerable
        triggers = np.arange(len(catalogue)) if answerable is None else np.flatnonzero(answerable)
    else:
        triggers = catalogue.indices(items, "item")
    if not len(triggers):
        raise ValueError("items: none, expected at least one id")
    plan = Query([0], k=k, alpha=alpha).plan(retriever.defaults, retriever.heads)
    made_of = {
        "index": index.manifest.digest,
        "version": retriever.version,
        "k": plan.k,
        "k_ann": plan.k_ann,
        "num_probes": plan.num_probes,
        "quotas": dict(plan.quotas),
        "items": hashlib.sha256(np.ascontiguousarray(triggers, "<i8").tobytes()).hexdigest(),
        "shard_items": shard_items,
    }
    with join_ranks("cpu") as ranks:
        parts = _Parts(out.with_name(f"{out.name}.parts"), triggers, shard_items)
        todo = on_first(ranks, lambda: parts.begin(made_of))
        own = todo[ranks.rank :: ranks.world_size]
        with Progress(console=Console(stderr=True), disable=not ranks.is_first) as progress:
            for shard in progress.track(own, description="similar items"):
                parts.write(shard, _answers(retriever, parts.triggers(shard), plan))
        dist.barrier()

        def finish() -> Artifact:
            writer = ArtifactWriter(out, "similar-items")
            writer.begin()
            for shard in range(parts.num_shards):
                link_file(parts.file(shard), writer.folder / parts.file(shard).name)
            writer.summary |= {"num_items": len(triggers), "k": plan.k, "alpha": plan.alpha, "heads": retriever.heads}
            made = writer.commit(config.model_dump(mode="json"), {"index": index}, decisive=made_of)
            shutil.rmtree(parts.folder)
            return made

        return on_first(ranks, finish)


@dataclass(frozen=True)
class _Parts:
    """Finished shards of a run: a shard is finished when its file has its name.

    Attributes:
        folder: ``<out>.parts``.
        all_triggers: item indices, in the order of their rows.
        shard_items: of a shard, the last one may be smaller.
    """

    folder: Path
    all_triggers: Indices
    shard_items: int

    @property
    def num_shards(self) -> int:
        return -(-len(self.all_triggers) // self.shard_items)

    def begin(self, made_of: dict[str, Any]) -> list[int]:
        """Shards to write; what a run of another index or other settings has left is dropped."""
        plan = self.folder / _PLAN
        if not (plan.is_file() and json.loads(plan.read_text()) == made_of):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_atomically(plan, json.dumps(made_of))
        return [shard for shard in range(self.num_shards) if not self.file(shard).is_file()]

    def file(self, shard: int) -> Path:
        return self.folder / f"part-{shard:06d}.parquet"

    def triggers(self, shard: int) -> Indices:
        return self.all_triggers[shard * self.shard_items : (shard + 1) * self.shard_items]

    def write(self, shard: int, rows: pa.Table) -> None:
        aside = self.file(shard).with_suffix(".partial")
        pq.write_table(rows, aside, compression="zstd")
        aside.rename(self.file(shard))


def _answers(retriever: Retriever, triggers: Indices, plan: QueryPlan) -> pa.Table:
    """The rows of a shard."""
    batches = [triggers[start : start + _BATCH] for start in range(0, len(triggers), _BATCH)]
    return pa.concat_tables([_answers_of_batch(retriever, batch, plan) for batch in batches])


def _answers_of_batch(retriever: Retriever, triggers: Indices, plan: QueryPlan) -> pa.Table:
    found = retriever.answer_rows(triggers, plan)
    shown = retriever.catalogue.columns(found.items, _SHOWN).combine_chunks()
    columns = {name: _whole(shown.column(name)) for name in _SHOWN}
    fields = {
        "item_id": columns["item_id"],
        "head": pa.array(found.names).take(pa.array(found.heads)),
        "score": pa.array(found.scores),
        "similarity": pa.array(found.similarities),
        **{level: columns[level] for level in TOPICS},
    }
    ends = np.cumsum(np.bincount(found.triggers, minlength=len(triggers)))
    offsets = pa.array(np.concatenate(([0], ends)).astype(np.int32))
    similar = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(fields.values(), names=list(fields)))
    return retriever.catalogue.columns(triggers, _SHOWN).append_column("similar", similar)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
