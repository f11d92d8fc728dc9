"""Recall against time of other libraries for nearest neighbours, on the vectors and queries of ``benchmarks.index``.

Each library is used where it is installed (``pip install usearch scann hnswlib``) and passed over, with a line, where
it is not; faiss's HNSW stands beside them. Neighbours are asked for in batches as ``benchmarks.index`` asks, on one
thread.

    python -m benchmarks.neighbours --out neighbours.json                              # 1M items: half an hour
    python -m benchmarks.neighbours --items 20000 --dim 32 --queries 100               # half a minute
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.index import make_queries, recall, timed
from benchmarks.index_build import write_vectors
from benchmarks.report import report_head
from mtmh.index.vector_index import ExactIndex

Vectors = npt.NDArray[np.float32]
Search = Callable[[Vectors], tuple[Any, npt.NDArray[np.int64]]]
EFFORTS = (16, 32, 64, 128, 256, 512)  # of a graph: candidates that a search keeps


def main() -> None:
    """Measures each library and writes JSON as it goes."""
    args = parse_args()
    faiss.omp_set_num_threads(args.threads)
    report: dict[str, Any] = report_head(args) | {"kinds": []}
    report["machine"]["faiss"] = faiss.__version__
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        vectors = write_vectors(root / "items.npy", args.items, args.dim, seed=0, noise_seed=0).read(0, args.items)
        queries = make_queries(root, args)
    exact = ExactIndex.build(vectors)
    truth = exact.search(queries, args.k)[1]
    del exact
    for name in args.libraries:
        try:
            version, curve = LIBRARIES[name](vectors, args)
        except ImportError as error:
            print(f"{name}: not installed ({error})")
            continue
        begun = time.process_time()
        points: list[dict[str, float]] = []
        for effort, search in curve:
            if not points:
                built = time.process_time() - begun
            (items,), (seconds,) = timed([search], queries, args)
            points.append({"probes": effort, "recall": recall(items, truth), "ms_per_query": 1e3 * seconds})
            print(f"{name:<12} {effort:>6} {points[-1]['recall']:>7.3f} {1e3 * seconds:>9.3f} ms of CPU time a query")
        report["kinds"].append({"storage": name, "version": version, "build_seconds": built, "points": points})
        if args.out is not None:
            args.out.write_text(json.dumps(report, indent=2))


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=list(LIBRARIES))
    parser.add_argument("--k", type=int, default=100, help="neighbours")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=50, help="queries a call: the triggers of a user")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--links", type=int, default=16, help="of an item in a graph")
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args()


def faiss_hnsw(vectors: Vectors, args: argparse.Namespace) -> tuple[str, Iterator[tuple[int, Search]]]:
    """Faiss's graph over vectors in halves."""

    def curve() -> Iterator[tuple[int, Search]]:
        plain: Any = faiss  # whose type stubs tell the arguments of C++
        index = plain.IndexHNSWSQ(args.dim, faiss.ScalarQuantizer.QT_fp16, args.links, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:1])
        index.add(vectors)
        for effort in (effort for effort in EFFORTS if effort >= args.k):
            yield effort, partial(index.search, k=args.k, params=plain.SearchParametersHNSW(efSearch=effort))

    return faiss.__version__, curve()


def usearch(vectors: Vectors, args: argparse.Namespace) -> tuple[str, Iterator[tuple[int, Search]]]:
    """Usearch's graph over vectors in halves."""
    library = importlib.import_module("usearch")
    made = importlib.import_module("usearch.index").Index

    def curve() -> Iterator[tuple[int, Search]]:
        index = made(ndim=args.dim, metric="ip", dtype="f16", connectivity=args.links)
        index.add(np.arange(len(vectors)), vectors, threads=args.threads)
        for effort in (effort for effort in EFFORTS if effort >= args.k):

            def search(part: Vectors, effort: int = effort) -> tuple[Any, npt.NDArray[np.int64]]:
                index.expansion_search = effort
                found = index.search(part, args.k, threads=args.threads)
                return found.distances, found.keys.astype(np.int64)

            yield effort, search

    return str(library.__version__), curve()


def hnswlib(vectors: Vectors, args: argparse.Namespace) -> tuple[str, Iterator[tuple[int, Search]]]:
    """Hnswlib's graph."""
    library = importlib.import_module("hnswlib")

    def curve() -> Iterator[tuple[int, Search]]:
        index = library.Index(space="ip", dim=args.dim)
        index.init_index(max_elements=len(vectors), M=args.links, ef_construction=100)
        index.add_items(vectors, num_threads=args.threads)
        for effort in (effort for effort in EFFORTS if effort >= args.k):

            def search(part: Vectors, effort: int = effort) -> tuple[Any, npt.NDArray[np.int64]]:
                index.set_ef(effort)
                labels, distances = index.knn_query(part, args.k, num_threads=args.threads)
                return distances, labels.astype(np.int64)

            yield effort, search

    return str(getattr(library, "__version__", "?")), curve()


def scann(vectors: Vectors, args: argparse.Namespace) -> tuple[str, Iterator[tuple[int, Search]]]:
    """ScaNN: clusters, codes of 4 bits by anisotropic loss, reordering by the vectors."""
    library = importlib.import_module("scann")
    clusters = max(1, round(4 * len(vectors) ** 0.5))

    def curve() -> Iterator[tuple[int, Search]]:
        index = (
            library.scann_ops_pybind.builder(vectors, args.k, "dot_product")
            .tree(num_leaves=clusters, num_leaves_to_search=32, training_sample_size=min(len(vectors), 262_144))
            .score_ah(2, anisotropic_quantization_threshold=0.2)
            .reorder(4 * args.k)
            .build()
        )
        for probes in (probes for probes in (4, 16, 64, 128, 256, 512) if probes <= clusters):

            def search(part: Vectors, probes: int = probes) -> tuple[Any, npt.NDArray[np.int64]]:
                items, scores = index.search_batched(part, args.k, leaves_to_search=probes)
                return scores, items.astype(np.int64)

            yield probes, search

    return str(getattr(library, "__version__", "?")), curve()


LIBRARIES = {"faiss-hnsw": faiss_hnsw, "usearch": usearch, "hnswlib": hnswlib, "scann": scann}


if __name__ == "__main__":
    main()
