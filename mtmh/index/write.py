"""Writes an index artifact over vectors in files, on any number of ranks: the lists of each head, and their recall."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import faiss
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from mtmh.artifacts import Artifact, ArtifactWriter, open_artifact, say_where
from mtmh.config import IndexConfig
from mtmh.data.row_file import RowFile
from mtmh.distributed.ranks import Ranks, file_records, gather_rows, on_first, writing_alone
from mtmh.index import lists
from mtmh.index.artifact import (
    AnnRecall,
    IndexSummary,
    RankedBy,
    exact_file,
    index_file,
    lists_file,
    milvus_file,
    near_file,
    places_file,
)
from mtmh.index.kept_clusters import cluster_type, cut_to, most_kept
from mtmh.index.milvus import MilvusCollection, MilvusIndex, drop_collections
from mtmh.index.recall import RecallMeter
from mtmh.index.storage import PRECISIONS, WHOLE, IvfSettings, VectorFile, train_ivf
from mtmh.index.store import open_head
from mtmh.index.vector_index import write_faiss
from mtmh.tower.artifact import vectors_file

_READ_ROWS = 65_536

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """The vectors that become an index.

    Attributes:
        folder: has a file a head, ``vectors_file(head)``.
        heads: names, the engagement head first.
        dim: D.
        num_items: I.
        id_type: of the item ids.
    """

    folder: Path
    heads: list[str]
    dim: int
    num_items: int
    id_type: Literal["int64", "string"]

    def vectors(self, head: str) -> Path:
        """[I, D] float32 of one head."""
        return self.folder / vectors_file(head)


@dataclass(frozen=True)
class IndexRecord:
    """Facts of the making of an index, for its manifest: the recipe, the settings that decide, and the inputs."""

    config: Mapping[str, Any]
    decisive: Mapping[str, Any]
    inputs: Mapping[str, Artifact]


def write_index(
    source: Source,
    settings: IndexConfig,
    out: Path,
    ranks: Ranks,
    record: IndexRecord,
    finish: Callable[[Path], dict[str, Any]],
    *,
    ranked_by: RankedBy,
    num_probes: int | Literal["auto"],
    seed: int,
) -> Artifact:
    """Writes an index artifact over vectors in files; all ranks together.

    Args:
        source: the vectors.
        settings: clusters, storage, and the recall that ``auto`` probes must reach.
        out: folder of the artifact.
        ranks: this process among the others.
        record: for the manifest.
        finish: writes what else serving needs into the folder, on the first rank; gives more of the summary.
        ranked_by: the scores that the version ranks by.
        num_probes: clusters that a search visits by default; ``auto``: the fewest that reach ``index.min_recall`` under
            every head.
        seed: of the samples and of k-means.
    """
    with writing_alone(ranks, out):
        writer = ArtifactWriter(out, "index")
        try:
            on_first(ranks, writer.begin)
            built = _build_heads(source, settings, writer.folder, ranks, ranked_by, num_probes, seed)
            names = on_first(ranks, lambda: [path.name for path in writer.folder.iterdir() if path.is_file()])
            records = file_records(writer.folder, names, ranks)

            def commit() -> None:
                writer.summary |= built.model_copy(update=finish(writer.folder)).model_dump()
                writer.commit(record.config, record.inputs, records, decisive=record.decisive)

            on_first(ranks, commit)
        except BaseException as error:
            if isinstance(error, OSError):
                say_where(error, writer.folder)
            if ranks.is_first:
                drop_collections(writer.folder, settings.milvus)
            raise
        finally:
            if ranks.is_first:
                shutil.rmtree(writer.folder, ignore_errors=True)
    return open_artifact(out, "index")


def _build_heads(
    source: Source,
    config: IndexConfig,
    folder: Path,
    ranks: Ranks,
    ranked_by: RankedBy,
    num_probes: int | Literal["auto"],
    seed: int,
) -> IndexSummary:
    """Writes the files of all heads and measures each."""
    settings = IvfSettings.of(config, seed)
    settings.check(source.num_items, source.dim)
    summary = IndexSummary(
        heads=source.heads,
        dim=source.dim,
        num_items=source.num_items,
        id_type=source.id_type,
        num_clusters=settings.clusters(source.num_items),
        ranked_by=ranked_by,
        num_probes=1,  # this and the recall are measured once the files are there
        ann_recall={},
        storage=config.storage,
        backend=config.backend,
        vectors=_vectors_kind(config),
        refine_factor=config.refine_factor,
    )
    kept = _clusters_to_keep(summary, num_probes)
    for head in source.heads:
        vectors = RowFile(source.vectors(head), np.float32, (source.num_items, source.dim))
        if config.backend == "milvus":
            assert config.milvus is not None
            place = MilvusCollection.named(config.milvus, head, source.dim, summary.num_clusters)
            _fill_collection(folder, head, vectors, config.shard_items, place, ranks)
        else:
            _build_head(folder, head, vectors, config.shard_items, settings, summary, kept, ranks)
    own = source.heads[ranks.rank :: ranks.world_size]
    meters = {
        head: RecallMeter(open_head(folder, head, summary, config.milvus)[0], RowFile(source.vectors(head)), seed)
        for head in own
    }
    if num_probes == "auto":
        enough = max((meter.fewest_probes(config.min_recall) for meter in meters.values()), default=1)
        probes = max(_gathered(enough, ranks))
    else:
        probes = num_probes
    for head in own if kept else []:
        cut_to(folder / near_file(head), min(probes, summary.num_clusters))
    recalls: dict[str, AnnRecall] = {}
    curves: dict[str, list[AnnRecall]] = {}
    for part in _gathered({head: (meter.recall(probes), meter.curve) for head, meter in meters.items()}, ranks):
        recalls |= {head: recall for head, (recall, _) in part.items()}
        curves |= {head: curve for head, (_, curve) in part.items()}
    return summary.model_copy(
        update={
            "num_probes": probes,
            "ann_recall": {head: recalls[head] for head in source.heads},
            "recall_curve": {head: curves[head] for head in source.heads},
        }
    )


def _clusters_to_keep(summary: IndexSummary, num_probes: int | Literal["auto"]) -> int:
    """Clusters an item that are kept while it is filed: those of a search, or as many as it may turn out to visit."""
    most = most_kept(summary.storage, summary.dim, summary.num_clusters) if summary.backend == "faiss" else 0
    visited = most if num_probes == "auto" else min(num_probes, summary.num_clusters)
    return visited if visited <= most else 0


def _gathered(value: T, ranks: Ranks) -> list[T]:
    """The values of all ranks, in their order."""
    values = [value] * ranks.world_size
    dist.all_gather_object(values, value)
    return values


def _vectors_kind(config: IndexConfig) -> Literal["lists", "fp16", "fp32", "rows"]:
    if config.backend == "milvus":
        return "rows"
    return "lists" if config.storage in WHOLE else config.vectors


def _fill_collection(
    folder: Path, head: str, vectors: RowFile, shard_items: int, place: MilvusCollection, ranks: Ranks
) -> None:
    """Puts the vectors of one head into a collection of Milvus; all ranks together, each its shards."""
    if place.is_file and ranks.world_size > 1:
        raise ValueError(f"index.milvus.uri is {place.uri}: Milvus Lite is for one process, and here are several ranks")

    def create() -> MilvusCollection:
        place.write(folder / milvus_file(head))  # first, so that a failed build finds what it has to delete
        MilvusIndex.create(place)
        return place

    collection = MilvusIndex(on_first(ranks, create))
    for start in range(ranks.rank * shard_items, len(vectors), ranks.world_size * shard_items):
        for begin in range(start, min(start + shard_items, len(vectors)), _READ_ROWS):
            end = min(begin + _READ_ROWS, start + shard_items, len(vectors))
            collection.add(vectors.read(begin, end), np.arange(begin, end))
    dist.barrier()
    on_first(ranks, collection.seal)
    on_first(ranks, lambda: shutil.copyfile(vectors.path, folder / vectors_file(head)))


def _build_head(
    folder: Path,
    head: str,
    vectors: RowFile,
    shard_items: int,
    settings: IvfSettings,
    summary: IndexSummary,
    kept: int,
    ranks: Ranks,
) -> None:
    """Writes the files of one head, the ``kept`` clusters nearest to each item among them; all ranks together."""
    scratch = folder / "scratch"
    index = _train(scratch, vectors, settings, ranks)
    shards = lists.ListShards(scratch, head, len(vectors), shard_items)
    own = range(ranks.rank, shards.count, ranks.world_size)
    near_path, near = folder / near_file(head), None
    if kept:
        near_type, shape = cluster_type(summary.num_clusters), (len(vectors), kept)
        on_first(ranks, lambda: RowFile.create(near_path, near_type, shape).path)
        near = RowFile(near_path)
    filer = lists.ShardFiler(index)
    for shard in own:
        filer.file(vectors, shards, shard, near)
    dist.barrier()

    offsets, code_size = shards.offsets(), int(index.code_size)
    sizes = lists.list_sizes(offsets)
    list_places = lists.list_places(sizes, code_size)
    path = folder / lists_file(head)
    on_first(ranks, lambda: lists.create_lists(path, sizes, code_size))
    for number, run in enumerate(lists.merge_runs(sizes, code_size)):
        if number % ranks.world_size == ranks.rank:
            lists.merge_lists(shards, offsets, run, int(list_places[run[0]]), code_size, path)
    if summary.vectors == "fp16" or summary.vectors == "fp32":
        exact = VectorFile(folder / exact_file(head), summary.vectors, *vectors.shape)
        on_first(ranks, exact.create)
        for items in map(shards.items, own):
            exact.write(items.start, vectors.read(items.start, items.stop))
    else:
        places = folder / places_file(head)
        on_first(ranks, lambda: RowFile.create(places, np.int64, (len(vectors),)).path)
        table, value_bytes = RowFile(places), np.dtype(PRECISIONS[WHOLE[summary.storage]]).itemsize
        for shard, found in lists.vector_places(shards, offsets, own, code_size, value_bytes):
            table.write(shards.items(shard).start, found)
    dist.barrier()

    def write_index() -> None:
        lists.attach_lists(index, sizes, path)
        write_faiss(index, folder / index_file(head))
        shutil.rmtree(scratch)

    on_first(ranks, write_index)


def _train(scratch: Path, vectors: RowFile, settings: IvfSettings, ranks: Ranks) -> Any:
    """The empty index with its clusters, trained by rank 0 on what all have read, on every rank."""
    path = scratch / "trained.faiss"
    sample = _read_sample(vectors, settings.sample(len(vectors)), ranks)

    def train() -> None:
        scratch.mkdir()
        write_faiss(train_ivf(sample, len(vectors), settings), path)

    on_first(ranks, train)
    return faiss.read_index(str(path))


def _read_sample(vectors: RowFile, items: npt.NDArray[np.int64], ranks: Ranks) -> npt.NDArray[np.float32]:
    """Vectors of the sampled items [S, D], on every rank; each reads its run of the catalogue."""
    cuts = np.searchsorted(items, np.linspace(0, len(vectors), ranks.world_size + 1).astype(np.int64))
    own = items[cuts[ranks.rank] : cuts[ranks.rank + 1]]
    found = np.empty((len(own), vectors.shape[1]), np.float32)
    for start in range(0, len(vectors), _READ_ROWS):
        begin, end = np.searchsorted(own, [start, start + _READ_ROWS])
        if begin < end:
            first, last = int(own[begin]), int(own[end - 1])
            found[begin:end] = vectors.read(first, last + 1)[own[begin:end] - first]
    return gather_rows(torch.from_numpy(found), np.diff(cuts).tolist()).numpy()
