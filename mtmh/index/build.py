"""Builds the index artifact on any number of ranks: inverted lists a head, and what serving needs beside them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from faiss.contrib.exhaustive_search import knn_ground_truth

from mtmh.artifacts import MANIFEST, Artifact, ArtifactWriter, link_folder, open_artifact
from mtmh.config import Config, IndexConfig, decisive
from mtmh.data.dataset import open_dataset
from mtmh.data.item_vectors import ItemVectors
from mtmh.data.row_file import RowFile, open_rows
from mtmh.distributed.ranks import Ranks, gather_rows, join_ranks, on_first
from mtmh.index import lists
from mtmh.index.artifact import (
    ITEMS,
    PRERANKER,
    AnnRecall,
    IndexSummary,
    exact_file,
    index_file,
    lists_file,
    milvus_file,
    places_file,
)
from mtmh.index.milvus import MilvusCollection, MilvusIndex, drop_collections
from mtmh.index.storage import PRECISIONS, WHOLE, IvfSettings, VectorFile, train_ivf
from mtmh.index.store import open_head
from mtmh.index.vector_index import IvfIndex, VectorIndex
from mtmh.tower.artifact import EmbeddingsSummary, vectors_file
from mtmh.tower.export import write_tower

logger = logging.getLogger(__name__)

DISPLAY_COLUMNS = ["item_id", "text", "topic_l1", "topic_l2", "train_count", "first_seen"]

_RECALL_K = 100
_RECALL_QUERIES = 1000
_RECALL_BLOCK = 32  # queries between two drops of mapped pages
_READ_ROWS = 65_536


def build_index(config: Config, out: Path) -> Artifact:
    """Writes an index artifact from the embeddings of a model; alone, or as one rank of torchrun.

    k-means is trained on a sample that all ranks read together; every rank files shards of the catalogue and merges
    runs of lists. No process holds more than the sample, a shard, or a run, and the files are the same on any number
    of ranks. ``layout.py`` names the files. The manifest records each head's ANN recall against exact search.

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
        preranker = _open_preranker(config, inputs)
        inputs |= {"preranker": preranker} if preranker is not None else {}
        made = EmbeddingsSummary.model_validate(embeddings.summary)

        def finish(folder: Path) -> dict[str, Any]:
            dataset.copy_items(DISPLAY_COLUMNS, folder / ITEMS)
            if preranker is not None:  # its own: the recipe's is replaced when it is trained again
                preranker.verify()
                link_folder(preranker.path, folder / PRERANKER)
            return {"tower": write_tower(folder, config, dataset, embeddings)}

        return write_index(config, dataset.summary.id_type, made, embeddings.path, out, ranks, inputs, finish)


def _open_preranker(config: Config, inputs: Mapping[str, Artifact]) -> Artifact | None:
    """The learned preranker of a recipe; None: nothing is ranked by it, or it was to sort and is not there.

    Raises:
        ValueError: there is none, or it was trained on something else than the index is built from.
    """
    settings, folder = config.retrieval, config.model_dir("preranker")
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


def write_index(
    config: Config,
    id_type: Literal["int64", "string"],
    made: EmbeddingsSummary,
    embeddings: Path,
    out: Path,
    ranks: Ranks,
    inputs: Mapping[str, Artifact],
    finish: Callable[[Path], dict[str, Any]],
) -> Artifact:
    """Writes an index artifact over vectors in files; all ranks together.

    Args:
        config: ``index`` sets clusters and storage.
        id_type: of the item ids.
        made: heads and sizes.
        embeddings: folder with the vectors, a file a head.
        out: folder of the artifact.
        ranks: this process among the others.
        inputs: recorded in the manifest.
        finish: writes what else serving needs into the folder, on the first rank; gives more of the summary.
    """
    writer = ArtifactWriter(out, "index")
    on_first(ranks, writer.begin)
    try:
        summary = _build_heads(config, id_type, made, embeddings, writer.folder, ranks)

        def commit() -> None:
            writer.summary |= summary.model_copy(update=finish(writer.folder)).model_dump()
            writer.commit(config.model_dump(mode="json"), inputs, decisive=decisive(config, "index"))

        on_first(ranks, commit)
    except BaseException:
        if ranks.is_first:
            drop_collections(writer.folder)
        raise
    finally:
        if ranks.is_first:
            shutil.rmtree(writer.folder, ignore_errors=True)
    return open_artifact(out, "index")


def _build_heads(
    config: Config,
    id_type: Literal["int64", "string"],
    made: EmbeddingsSummary,
    embeddings: Path,
    folder: Path,
    ranks: Ranks,
) -> IndexSummary:
    """Writes the files of all heads and measures each."""
    settings = IvfSettings.of(config.index, config.seed)
    settings.check(made.num_items, made.dim)
    summary = IndexSummary(
        heads=made.heads,
        dim=made.dim,
        num_items=made.num_items,
        id_type=id_type,
        num_clusters=settings.clusters(made.num_items),
        ann_recall={},
        storage=config.index.storage,
        backend=config.index.backend,
        vectors=_vectors_kind(config.index),
        refine_factor=config.index.refine_factor,
    )
    for head in made.heads:
        vectors = open_rows(embeddings / vectors_file(head), np.float32, (made.num_items, made.dim))
        if config.index.backend == "milvus":
            assert config.index.milvus is not None
            place = MilvusCollection.named(config.index.milvus, head, made.dim, summary.num_clusters)
            _fill_collection(folder, head, vectors, config.index.shard_items, place, ranks)
        else:
            _build_head(folder, head, vectors, config.index.shard_items, settings, summary, ranks)
    for head in made.heads[ranks.rank :: ranks.world_size]:
        index, _ = open_head(folder, head, summary)
        vectors = RowFile(embeddings / vectors_file(head))
        summary.ann_recall[head] = ann_recall(index, vectors, config.retrieval.num_probes, config.seed)
    measured: list[dict[str, AnnRecall]] = [{}] * ranks.world_size
    dist.all_gather_object(measured, summary.ann_recall)
    found = {head: recall for part in measured for head, recall in part.items()}
    return summary.model_copy(update={"ann_recall": {head: found[head] for head in made.heads}})


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
    ranks: Ranks,
) -> None:
    """Writes the files of one head; all ranks together."""
    scratch = folder / "scratch"
    index = _train(scratch, vectors, settings, ranks)
    shards = lists.Shards(scratch, head, len(vectors), shard_items)
    own = range(ranks.rank, shards.count, ranks.world_size)
    filer = lists.ShardFiler(index)
    for shard in own:
        filer.file(vectors, shards, shard)
    dist.barrier()

    sizes, code_size = shards.sizes(), int(index.code_size)
    path = folder / lists_file(head)
    on_first(ranks, lambda: lists.create_lists(path, sizes, code_size))
    for number, run in enumerate(lists.merge_runs(sizes, code_size)):
        if number % ranks.world_size == ranks.rank:
            lists.merge_lists(shards, sizes, run, code_size, path)
    if summary.vectors == "fp16" or summary.vectors == "fp32":
        exact = VectorFile(folder / exact_file(head), summary.vectors, *vectors.shape)
        on_first(ranks, exact.create)
        for items in map(shards.items, own):
            exact.write(items.start, vectors.read(items.start, items.stop))
    else:
        places = folder / places_file(head)
        on_first(ranks, lambda: RowFile.create(places, np.int64, (len(vectors),)).path)
        table, value_bytes = RowFile(places), np.dtype(PRECISIONS[WHOLE[summary.storage]]).itemsize
        for shard in own:
            table.write(shards.items(shard).start, lists.places(shards, sizes, shard, code_size, value_bytes))
    dist.barrier()

    def write_index() -> None:
        lists.attach_lists(index, sizes, path)
        faiss.write_index(index, str(folder / index_file(head)))
        shutil.rmtree(scratch)

    on_first(ranks, write_index)


def _train(scratch: Path, vectors: RowFile, settings: IvfSettings, ranks: Ranks) -> Any:
    """The empty index with its clusters, trained by rank 0 on what all have read, on every rank."""
    path = scratch / "trained.faiss"
    sample = _read_sample(vectors, settings.sample(len(vectors)), ranks)

    def train() -> None:
        scratch.mkdir()
        faiss.write_index(train_ivf(sample, len(vectors), settings), str(path))

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


def ann_recall(index: VectorIndex, vectors: ItemVectors | RowFile, num_probes: int, seed: int) -> AnnRecall:
    """Measures the index against exact search, with sampled items as queries.

    Vectors are compared block by block: memory does not grow with the catalogue.

    Args:
        index: holds the items 0 to I - 1.
        vectors: [I, D] float32 of all of them.
        num_probes: clusters searched.
        seed: of the sample.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(vectors), min(_RECALL_QUERIES, len(vectors)), replace=False))
    queries, k = np.ascontiguousarray(vectors[rows]), min(_RECALL_K, len(vectors))
    blocks = (np.ascontiguousarray(vectors[start : start + _READ_ROWS]) for start in range(0, len(vectors), _READ_ROWS))
    _, exact = knn_ground_truth(queries, blocks, k, faiss.METRIC_INNER_PRODUCT)
    found = []
    for start in range(0, len(queries), _RECALL_BLOCK):
        found.append(index.search(queries[start : start + _RECALL_BLOCK], k, num_probes)[1])
        if isinstance(index, IvfIndex):
            index.drop_pages()
    hits = _sorted_overlap(exact, np.concatenate(found))
    return AnnRecall(k=k, num_probes=num_probes, num_queries=len(rows), recall=float(hits / exact.size))


def _sorted_overlap(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> int:
    """Items that both [Q, k] arrays hold in the same row."""
    width = int(max(a.max(), b.max())) + 2
    rows = np.arange(len(a))[:, None] * width
    return int(np.isin((a + rows)[a >= 0], (b + rows)[b >= 0]).sum())
