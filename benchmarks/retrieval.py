"""Time of a user's request in Python, stage by stage, and the share of faiss in it.

    python -m benchmarks.retrieval                                   # 1M items, 2 heads, 50 triggers: some minutes
    python -m benchmarks.retrieval --items 50000 --requests 20       # half a minute

One user is a history of triggers that lie together; the answer is one list. Each request is timed beside the bare faiss
calls that it contains: the same queries against the same inverted lists with the same filter, called directly, one head
after the other in the same thread. The other cases are the same request with filters, with items added and removed
since the build, and over other kinds of storage of the same clusters (``--storage flat fp16 fastscan``). The request of
the first case takes its turn beside each. Ratios are of CPU time, so that they hold on a busy machine too. With several
kinds of storage the recall and time of each over a range of probes come last.

``--sorter learned`` ranks by a learned preranker of random weights over simulated tables of neighbours, as large as
those of a catalogue of this size are: what it says means nothing, how long it takes does. ``--indexes FOLDER`` keeps
the trained indexes for the next run. Without ``--num-probes`` a search visits as many clusters as ``mtmh build-index``
would choose, which measures recall@100 in the same way; the table says the recall of each head. Triggers have their
nearest clusters kept, where a build would keep so many.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from mtmh.modules.combination import Combination
from mtmh.modules.preranker import UserTower
from rich.console import Console
from rich.table import Table

from benchmarks.compare import made_by
from benchmarks.index import Search, at_equal_recall, recall, timed
from mtmh.config import IndexConfig, PrerankerConfig, RetrievalConfig
from mtmh.data.item_vectors import StackedVectors
from mtmh.index.item_store import StoredItems
from mtmh.index.kept_clusters import cluster_type, most_kept
from mtmh.index.kinds import filled
from mtmh.index.recall import RecallMeter
from mtmh.index.storage import IvfSettings, Storage, train_ivf
from mtmh.index.vector_index import IvfIndex, largest, selector
from mtmh.preranking.artifact import TaskSummary
from mtmh.preranking.evidence import Evidence
from mtmh.preranking.forward import CombinedEvidence, UserQueries
from mtmh.preranking.neighbours import Neighbours
from mtmh.preranking.scorer import Scorer
from mtmh.preranking.user_ranker import UserRanker
from mtmh.retrieval.catalogue import Catalogue
from mtmh.retrieval.filters import Filters
from mtmh.retrieval.open_preranker import LearnedPreranker
from mtmh.retrieval.query import Query
from mtmh.retrieval.ranking import HeadScorePreranker, Ranker
from mtmh.retrieval.retriever import Retriever
from mtmh.retrieval.timings import Timings

HEADS = ["engagement", "relevance"]
FEW_ITEMS = 16_384  # allowed ones, which plain faiss compares all
HISTORY_PROBES = 32  # whatever a request is searched with, it has the same triggers
CURVE_QUERIES, CURVE_PROBES = 200, (4, 8, 16, 32, 64, 128)
STAGES = ["embed", "search", "prerank", "merge", "describe"]

Vectors = npt.NDArray[np.float32]


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--triggers", type=int, default=50)
    parser.add_argument("--k", type=int, default=30)
    parser.add_argument("--k-ann", type=int, default=1000)
    parser.add_argument("--num-probes", type=int, help="clusters that a search visits; not given: as many as a build")
    parser.add_argument("--min-recall", type=float, default=IndexConfig().min_recall, help="of those")
    parser.add_argument("--storage", nargs="+", choices=["flat", "fp16", "fastscan"], default=["flat"])
    parser.add_argument("--sorter", choices=["head-score", "learned"], default="head-score")
    parser.add_argument("--indexes", type=Path, help="folder of trained indexes, which are made where they are missing")
    parser.add_argument("--added", type=int, default=10_000, help="items added since the build")
    parser.add_argument("--cases", nargs="+", help="names of those to be measured; not given: all")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=8, help="of k-means")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/retrieval.json"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)

    vectors = {head: simulated(arguments.items, arguments.dim, seed) for seed, head in enumerate(HEADS)}
    indexes = {head: opened(head, vectors[head], arguments) for head in HEADS}
    meters = {head: RecallMeter(indexes[head], vectors[head], seed=0) for head in HEADS}
    if arguments.num_probes is None:
        arguments.num_probes = max(meter.fewest_probes(arguments.min_recall) for meter in meters.values())
    recalls = {head: meter.recall(arguments.num_probes).recall for head, meter in meters.items()}
    triggers = histories(indexes[HEADS[0]], vectors[HEADS[0]], arguments)
    unkept = indexes
    indexes = {
        head: with_kept(index, vectors[head], arguments.storage[0], triggers, arguments.num_probes)
        for head, index in unkept.items()
    }
    ranker = learned(vectors) if arguments.sorter == "learned" else HeadScorePreranker((HEADS[0], vectors[HEADS[0]]))
    retriever = make_retriever(indexes, vectors, ranker, arguments)
    result: dict[str, Any] = {
        "command": made_by(),
        "settings": {name: value for name, value in vars(arguments).items() if name not in ("out", "indexes")},
        "num_clusters": indexes[HEADS[0]].num_clusters,
        "recall": recalls,
        "threads": faiss.omp_get_max_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "cases": {},
    }
    excluded = [int(item) for item in np.random.default_rng(5).integers(0, arguments.items, 5000)]
    cases: dict[str, tuple[Retriever, Filters, dict[str, IvfIndex]]] = {
        name: (retriever, filters, indexes)
        for name, filters in {
            "no filter": Filters(exclude_seen=False),
            "seen items excluded": Filters(),
            "5,000 items excluded": Filters(exclude=excluded),
            "one of 10 topics": Filters(topic_l1=["topic 3"]),
            "one of 1,000 topics": Filters(topic_l2=["topic 33"]),
            "first seen in the last tenth": Filters(min_first_seen=arguments.items * 9 // 10),
        }.items()
    }
    if arguments.sorter == "head-score":  # the simulated preranker has no tower for new items
        changed = with_changes(retriever, arguments)
        cases[f"{arguments.added:,} added, as many removed"] = (changed, Filters(), indexes)
    found_anew = make_retriever(unkept, vectors, ranker, arguments)
    cases["no filter, no clusters kept"] = (found_anew, Filters(exclude_seen=False), unkept)
    of_first_head = {arguments.storage[0]: indexes[HEADS[0]]}
    for storage in arguments.storage[1:]:
        others = {
            head: with_kept(
                of_storage(storage, index, vectors[head]), vectors[head], storage, triggers, arguments.num_probes
            )
            for head, index in indexes.items()
        }
        of_first_head[storage] = others[HEADS[0]]
        of_others = make_retriever(others, vectors, ranker, arguments)
        cases[f"no filter, {storage}"] = (of_others, Filters(exclude_seen=False), others)
    if unknown := set(arguments.cases or ()) - set(cases):
        raise SystemExit(f"--cases {min(unknown)!r}: expected of {', '.join(map(repr, cases))}")
    for name, (case, filters, searched) in cases.items():
        if arguments.cases and name not in arguments.cases:
            continue
        result["cases"][name] = measure(case, filters, searched, retriever, indexes, vectors, triggers, arguments)
        arguments.out.write_text(json.dumps(result, indent=2))
        Console().print(f"[dim]{name}: {result['cases'][name]['cpu']['p50_ms']:.1f} ms[/dim]", highlight=False)
    Console(width=200).print(report(result))
    if len(of_first_head) > 1:
        result["kinds"] = curves(of_first_head, vectors[HEADS[0]], arguments)
        arguments.out.write_text(json.dumps(result, indent=2))
        print(at_equal_recall(result["kinds"]))


def curves(indexes: dict[str, IvfIndex], vectors: Vectors, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Recall@100 against CPU time a query of the kinds of storage, which take turns; as ``benchmarks.index`` has it."""
    rows = np.random.default_rng(5).choice(len(vectors), min(CURVE_QUERIES, len(vectors)), replace=False)
    queries, k = vectors[rows], min(100, len(vectors))
    truth = np.concatenate([largest(queries[row : row + 1] @ vectors.T, k)[1] for row in range(len(queries))])
    kinds: list[dict[str, Any]] = [{"storage": storage, "points": []} for storage in indexes]
    asking = argparse.Namespace(batch=arguments.triggers, repeats=3)
    for probes in CURVE_PROBES:
        searches: list[Search] = [partial(index.search, k=k, num_probes=probes) for index in indexes.values()]
        for kind, items, spent in zip(kinds, *timed(searches, queries, asking), strict=True):
            kind["points"].append({"probes": probes, "recall": recall(items, truth), "ms_per_query": 1000 * spent})
            point = kind["points"][-1]
            print(f"{kind['storage']:<8} {probes:>6} {point['recall']:>7.4f} {point['ms_per_query']:>9.3f}")
    return kinds


def simulated(num_items: int, dim: int, seed: int) -> Vectors:
    """[I, D] unit vectors in clumps of unequal size, as embeddings are."""
    rng = np.random.default_rng(seed)
    num_clumps = max(2, num_items // 200)
    centres = rng.normal(size=(num_clumps, dim)).astype(np.float32)
    clump = (num_clumps * rng.random(num_items) ** 2).astype(np.int64)
    vectors = centres[clump]
    for start in range(0, num_items, 65_536):
        vectors[start : start + 65_536] += 0.7 * rng.standard_normal(
            (len(vectors[start : start + 65_536]), dim), np.float32
        )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def opened(head: str, vectors: Vectors, arguments: argparse.Namespace) -> IvfIndex:
    """The index of one head by the first kind of storage, its clusters from the folder of trained ones if there."""
    storage = arguments.storage[0]
    if arguments.indexes is None:
        flat = in_memory(vectors, arguments.iterations)
    else:
        path = arguments.indexes / f"{head}-{'-'.join(map(str, (*vectors.shape, arguments.iterations)))}-flat.faiss"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            faiss.write_index(in_memory(vectors, arguments.iterations).faiss_index, str(path))
        flat = IvfIndex(faiss.read_index(str(path)))
    return flat if storage == "flat" else of_storage(storage, flat, vectors)


def in_memory(vectors: Vectors, iterations: int) -> IvfIndex:
    """A flat index of vectors [I, D]."""
    settings = IvfSettings(iterations=iterations)
    index = train_ivf(vectors[settings.sample(len(vectors))], len(vectors), settings)
    index.add(vectors)
    return IvfIndex(index)


def of_storage(storage: Storage, index: IvfIndex, vectors: Vectors) -> IvfIndex:
    """The same vectors in the same clusters, by another kind of storage."""
    settings = IvfSettings(storage=storage, num_clusters=index.num_clusters)
    sample, clusters = vectors[settings.sample(len(vectors))], index.clusters_of_items.astype(np.int64)
    return filled(settings, index, sample, vectors, clusters, refine_factor=4)


def histories(index: IvfIndex, vectors: Vectors, arguments: argparse.Namespace) -> npt.NDArray[np.int64]:
    """[requests + 3, triggers] items of each user, which lie near each other: neighbours of one item; -1: none."""
    starts = np.random.default_rng(1).integers(0, arguments.items, arguments.requests + 3)
    return index.search(vectors[starts], arguments.triggers, HISTORY_PROBES)[1]


def with_kept(
    index: IvfIndex, vectors: Vectors, storage: Storage, triggers: npt.NDArray[np.int64], num_probes: int
) -> IvfIndex:
    """The index with the clusters nearest to items, as a build keeps them of all; here of those that are triggers."""
    if num_probes > most_kept(storage, index.dim, index.num_clusters):
        return index
    items = np.unique(triggers[triggers >= 0])
    kept = np.zeros((len(vectors), num_probes), cluster_type(index.num_clusters))
    kept[items] = index.nearest(vectors[items], num_probes).clusters
    return IvfIndex(index.faiss_index, kept=kept)


def make_retriever(
    indexes: dict[str, IvfIndex], vectors: dict[str, Vectors], sorter: Ranker, arguments: argparse.Namespace
) -> Retriever:
    """A retriever over simulated items."""
    items = np.arange(arguments.items)
    table = pa.table(
        {
            "item_id": items,
            "text": pa.array([f"item {item}" for item in items]),
            "topic_l1": pa.array([f"topic {topic}" for topic in range(10)]).take(pa.array(items % 10)),
            "topic_l2": pa.array([f"topic {topic}" for topic in range(1000)]).take(pa.array(items % 1000)),
            "train_count": items % 97,
            "first_seen": items,
        }
    )
    return Retriever(
        indexes,
        vectors,
        Catalogue(StoredItems.of(table)),
        RetrievalConfig(k=arguments.k, k_ann=arguments.k_ann, num_probes=arguments.num_probes),
        preranker=HeadScorePreranker(),
        sorter=sorter,
    )


def learned(vectors: dict[str, Vectors]) -> Ranker:
    """A preranker of the sizes of the recipe's defaults."""
    settings, num_items, rng = PrerankerConfig(), len(vectors[HEADS[0]]), np.random.default_rng(11)

    def table(known: int) -> Neighbours:
        items = np.full((num_items, settings.neighbours), -1, np.int32)
        # An item's neighbours are the same as those of items near its number: histories share many, as they do.
        known = min(known, num_items)
        first = np.arange(known) // 100 * 100
        items[:known] = (first[:, None] + rng.integers(0, 2000, (1, settings.neighbours))) % num_items
        weights = np.zeros(items.shape, np.float16)
        weights[:known] = rng.random((1, settings.neighbours), np.float32)
        return Neighbours(items, weights)

    popularity = np.log1p(np.stack([np.arange(num_items) % 97, np.arange(num_items) % 31], axis=1)).astype(np.float32)
    evidence = Evidence(
        {head: StackedVectors(own) for head, own in vectors.items()},
        table(num_items),
        table(settings.linear_items),
        StackedVectors(popularity),
        settings.history_length,
    )
    items = simulated(num_items, settings.dim, 12)
    tower = UserTower(settings.dim, settings.hidden, settings.temperature, [-5.0])
    combination = Combination(len(evidence.names), settings.combination_hidden)
    tasks = [TaskSummary(name="engagement", label=None, weight=1.0)]
    scorer = Scorer(
        np.concatenate([items, np.zeros((num_items, 1), np.float32)], axis=1),
        UserQueries.of(tower),
        tasks,
        settings.history_length,
    )
    return LearnedPreranker(UserRanker(scorer, evidence, CombinedEvidence.of(combination)))


def with_changes(retriever: Retriever, arguments: argparse.Namespace) -> Retriever:
    """Many items added, and as many removed."""
    added = pa.table({"item_id": np.arange(arguments.added) + arguments.items})
    vectors = {head: simulated(arguments.added, arguments.dim, 9 + place) for place, head in enumerate(HEADS)}
    gone = np.random.default_rng(3).choice(arguments.items, min(arguments.added, arguments.items // 2), replace=False)
    return retriever.with_added(added, vectors).with_removed(gone.tolist())


def measure(
    retriever: Retriever,
    filters: Filters,
    indexes: dict[str, IvfIndex],
    first: Retriever,
    first_indexes: dict[str, IvfIndex],
    vectors: dict[str, Vectors],
    triggers: npt.NDArray[np.int64],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Milliseconds of a request, of its stages, and of the bare faiss calls; all taken in turn, request by request.

    Args:
        retriever: of the case.
        filters: of the case.
        indexes: that it searches.
        first: of the first case, whose request without filters takes its turn.
        first_indexes: that this one searches.
        vectors: of both.
        triggers: of each user.
        arguments: of the command line.
    """
    taken: dict[str, list[float]] = {name: [] for name in ("total", "cpu", "faiss", "first", *STAGES)}
    kept: list[float] = []
    for number, history in enumerate(triggers):
        items = history[history >= 0].tolist()
        queries = {head: np.ascontiguousarray(vectors[head][items]) for head in HEADS}
        allowed = filters.allowed(retriever.catalogue, history[history >= 0])
        allowed = None if allowed is None else allowed[: arguments.items]
        calls = [faiss_call(indexes[head], vectors[head], queries[head], allowed, arguments) for head in HEADS]
        timings = Timings()

        def request(items: list[int] = items, timings: Timings = timings) -> None:
            retriever.retrieve_user(Query(history=items, filters=filters), timings)

        def first_request(items: list[int] = items) -> None:
            first.retrieve_user(Query(history=items, filters=Filters(exclude_seen=False)))

        total, cpu = seconds(request)
        spent = {"total": total, "cpu": cpu, "faiss": seconds(*calls)[1], "first": seconds(first_request)[1]}
        if number < 3:  # threads start, pages come in
            continue
        for name, value in (spent | timings.seconds).items():
            taken[name].append(1000 * value)
        if indexes is not first_indexes:
            width, probes = arguments.k + 1, arguments.num_probes
            found, wanted = (
                each[HEADS[0]].search(queries[HEADS[0]], width, probes)[1] for each in (indexes, first_indexes)
            )
            kept += [float(np.isin(row, own).mean()) for own, row in zip(found, wanted, strict=True)]
    return {
        name: {
            "p50_ms": float(np.percentile(values, 50)),
            "p99_ms": float(np.percentile(values, 99)),
            "per_second": 1000 / float(np.mean(values)),
        }
        for name, values in taken.items()
    } | {
        "times_faiss": float(np.median(np.array(taken["cpu"]) / np.array(taken["faiss"]))),
        "times_unfiltered": float(np.median(np.array(taken["cpu"]) / np.array(taken["first"]))),
        "kept_recall": float(np.mean(kept)) if kept else 1.0,
    }


def faiss_call(
    index: IvfIndex,
    vectors: Vectors,
    queries: Vectors,
    allowed: npt.NDArray[np.bool_] | None,
    arguments: argparse.Namespace,
) -> Callable[[], object]:
    """One head's search as plain faiss would be asked for it, with everything but the search prepared beforehand.

    It is asked for what is kept. Few allowed items are all compared, and a filter is answered by as many more probes as
    it takes to compare as many allowed items.
    """
    k, num_probes = arguments.k + 1, arguments.num_probes
    sel = None
    if allowed is not None:
        places = np.flatnonzero(allowed)
        if len(places) <= FEW_ITEMS:
            few = vectors[places]
            return lambda: faiss.knn(queries, few, min(k, len(few)), metric=faiss.METRIC_INNER_PRODUCT)
        num_probes = math.ceil(num_probes * len(allowed) / len(places))
        sel = selector(allowed)
    # As keywords: so the parameters keep the selector alive. faiss's type stubs know only those of C++.
    made: Any = faiss.SearchParametersIVF
    parameters = made(nprobe=min(num_probes, index.num_clusters), sel=sel)
    searched: Any = index.faiss_index
    if index.refined_index is not None:
        refining: Any = faiss.IndexRefineSearchParameters
        searched = index.refined_index
        parameters = refining(k_factor=math.ceil(400 / k), base_index_params=parameters)
    return lambda: searched.search(queries, k, params=parameters)


def seconds(*work: Callable[[], object]) -> tuple[float, float]:
    """Wall time and CPU time."""
    start, cpu = time.perf_counter(), time.process_time()
    for part in work:
        part()
    return time.perf_counter() - start, time.process_time() - cpu


def report(result: dict[str, Any]) -> Table:
    """A row a case."""
    settings = result["settings"]
    recall_of_heads = " and ".join(f"{recall:.3f}" for recall in result["recall"].values())
    title = (
        f"One user: {settings['triggers']} triggers, {len(HEADS)} heads, k_ann {settings['k_ann']}, K {settings['k']}, "
        f"{settings['num_probes']} of {result['num_clusters']} clusters (recall@100 {recall_of_heads}), "
        f"{settings['items']:,} items; "
        f"p50 / p99 in ms, wall and CPU; {result['threads']} faiss threads; finds: of what the first storage does"
    )
    table = Table(title=title, title_justify="left")
    for name in ("case", "whole request", "CPU", "bare faiss, CPU", "x faiss", "x first case", "finds", *STAGES):
        table.add_column(name, justify="left" if name == "case" else "right")
    for name, case in result["cases"].items():
        cells = {
            stage: f"{case[stage]['p50_ms']:.2f} / {case[stage]['p99_ms']:.2f}"
            for stage in ("total", "cpu", "faiss", *STAGES)
        }
        table.add_row(
            name,
            cells["total"],
            cells["cpu"],
            cells["faiss"],
            f"{case['times_faiss']:.2f}",
            f"{case['times_unfiltered']:.2f}",
            f"{case['kept_recall']:.3f}",
            *(cells[stage] for stage in STAGES),
        )
    return table


if __name__ == "__main__":
    main()
