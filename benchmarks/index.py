"""Recall, search time and bytes of each storage kind of the index, beside plain faiss.

Builds an index of each kind over the same vectors (a mixture of clusters of unequal sizes, see ``index_build.py``),
opens it as the retriever does, and searches it over a range of probed clusters. Beside each point stands the same
faiss index called directly. The limit is exact search over the flat vectors. Recall is the share of the exact
neighbours; times are CPU time, medians over repeats, of one query in a batch. ``--beside`` takes the JSON of
``benchmarks.neighbours``, other libraries on the same vectors and queries, and of earlier runs of this one, into the
plot and the last table: the time at equal recall.

    python -m benchmarks.index --out index.json --plot index.svg                       # 1M items, half an hour
    python -m benchmarks.index --items 20000 --dim 32 --clusters 128 --queries 100     # half a minute
    python -m benchmarks.index --storage --beside index.json neighbours.json --plot all.svg    # draws, measures nothing
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.index_build import HEADS, index_config, write_vectors, write_world
from benchmarks.report import report_head
from mtmh.config import Config
from mtmh.index.artifact import IndexSummary
from mtmh.index.build import build_index
from mtmh.index.storage import IvfSettings, train_ivf
from mtmh.index.store import open_head
from mtmh.index.vector_index import ExactIndex, IvfIndex

KINDS = ("flat", "fp16", "sq8", "pq", "fastscan")
QUERY_SEED = 99
RECALLS = (0.85, 0.9, 0.93, 0.95)  # at which kinds are compared

Vectors = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]
Search = Callable[[Vectors], tuple[Vectors, Items]]


def main() -> None:
    """Measures every kind, prints the table, writes JSON and the plot as it goes."""
    args = parse_args()
    faiss.omp_set_num_threads(args.threads)
    report: dict[str, Any] = report_head(args) | {"exact": None, "kinds": []}
    report["machine"]["faiss"] = faiss.__version__
    beside = [kind for path in args.beside for kind in json.loads(path.read_text())["kinds"]]
    if args.storage:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            measure(Path(folder), report, args)
    kinds = report["kinds"] + beside
    if args.plot is not None:
        plot(kinds, report["exact"], args)
    print(at_equal_recall(kinds))


def measure(root: Path, report: dict[str, Any], args: argparse.Namespace) -> None:
    """Measures every kind, prints the table, writes JSON as it goes."""
    write_world(root, args.items, args.dim, 1)
    # Queries are items of the same mixture that the index does not hold.
    queries = make_queries(root, args)
    truth, seconds = exact_search(root, queries, args)
    report["exact"] = {"ms_per_query": 1e3 * seconds, "bytes_per_item": 4 * args.dim}
    print(f"exact search: {1e3 * seconds:.2f} ms of CPU time a query, {4 * args.dim} bytes/item\n")
    print("bytes/item: those that a search reads of a vector / all of the index and the vectors; CPU time\n")
    print(f"{'storage':<8} {'bytes/item':>15} {'probes':>6} {'recall':>7} {'ms/query':>9} {'faiss':>9} {'ratio':>6}")
    for kind in args.storage:
        report["kinds"].append(measure_kind(root, kind, queries, truth, args))
        if args.out is not None:
            args.out.write_text(json.dumps(report, indent=2))


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--clusters", type=int, help="default: the product's, about 4 * sqrt(items)")
    parser.add_argument("--iterations", type=int, default=20, help="of k-means")
    parser.add_argument("--storage", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--beside", nargs="*", type=Path, default=[], help="JSON of other runs over the same vectors")
    parser.add_argument("--probes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--k", type=int, default=100, help="neighbours")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=50, help="queries a call: the triggers of a user")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the files go meanwhile: about 2 KiB an item")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--plot", type=Path, help="SVG file")
    return parser.parse_args()


def make_queries(root: Path, args: argparse.Namespace) -> Vectors:
    """[Q, D] float32: the centres are those of the first head's items, the noise is other."""
    file = write_vectors(root / "queries.npy", args.queries, args.dim, seed=0, noise_seed=QUERY_SEED)
    return file.read(0, args.queries)


def exact_search(root: Path, queries: Vectors, args: argparse.Namespace) -> tuple[Items, float]:
    """The true neighbours [Q, k], and the seconds a query that they take."""
    path = index_config(root, "flat", None).model_dir("embeddings") / f"{HEADS[0]}.npy"
    index = ExactIndex.build(np.load(path, mmap_mode="r"))
    (items,), (seconds,) = timed([lambda part: index.search(part, args.k)], queries, args)
    return items, seconds


def measure_kind(root: Path, kind: str, queries: Vectors, truth: Items, args: argparse.Namespace) -> dict[str, Any]:
    """Builds one index, as the product does and by faiss alone, and searches it at every number of probes."""
    config = index_config(root, kind, args.clusters, args.iterations)
    begun = time.process_time()
    artifact = build_index(config, root / kind)
    build_seconds = time.process_time() - begun
    build_times_faiss = build_seconds / plain_build_seconds(config)
    summary = IndexSummary.model_validate(artifact.summary)
    index, _ = open_head(artifact.path, HEADS[0], summary)
    assert isinstance(index, IvfIndex)
    files = {name: record.bytes / args.items for name, record in artifact.manifest.files.items()}
    searched = index.code_bytes + 8.0
    stored = sum(size for name, size in files.items() if name.startswith(HEADS[0]))
    points = []
    for probes in (probes for probes in args.probes if probes <= index.num_clusters):
        plain = plain_search(index, probes, args.k)
        (items, plain_items), (seconds, plain_seconds) = timed(
            [partial(index.search, k=args.k, num_probes=probes), plain], queries, args
        )
        # Its products round otherwise: of two clusters as near as each other, it may visit the other one.
        clusters = index.faiss_index.quantizer.search(queries, probes)[1]
        visits_others = (np.sort(index.nearest(queries, probes).clusters) != np.sort(clusters)).any(axis=1)
        assert np.array_equal(items[~visits_others], plain_items[~visits_others]), "plain faiss answers otherwise"
        assert np.mean(items == plain_items) > 0.999, "plain faiss visits other clusters"
        points.append(
            {
                "probes": probes,
                "recall": recall(items, truth),
                "ms_per_query": 1e3 * seconds,
                "plain_faiss_ms_per_query": 1e3 * plain_seconds,
            }
        )
        point = points[-1]
        print(
            f"{kind:<8} {searched:>6.0f} / {stored:>6.0f} {probes:>6} {point['recall']:>7.3f} {1e3 * seconds:>9.3f}"
            f" {1e3 * plain_seconds:>9.3f} {seconds / plain_seconds:>6.2f}"
        )
    print(f"{kind}: built in {build_times_faiss:.2f} times the CPU time of faiss alone")
    return {
        "storage": kind,
        "clusters": index.num_clusters,
        "refine_factor": summary.refine_factor if kind in ("sq8", "pq", "fastscan") else 0,
        "build_seconds": build_seconds,
        "build_times_faiss": build_times_faiss,
        "searched_bytes_per_item": searched,
        "stored_bytes_per_item": stored,
        "points": points,
    }


def plain_build_seconds(config: Config) -> float:
    """CPU seconds of faiss alone for the same clusters and lists, all vectors in memory; no recall is measured."""
    vectors = np.load(config.model_dir("embeddings") / f"{HEADS[0]}.npy")
    begun = time.process_time()
    settings = IvfSettings.of(config.index, config.seed)
    train_ivf(vectors[settings.sample(len(vectors))], len(vectors), settings).add(vectors)
    return time.process_time() - begun


def plain_search(index: IvfIndex, probes: int, k: int) -> Search:
    """The same faiss index, called as one calls faiss."""
    params: Any = faiss.SearchParametersIVF(nprobe=probes)  # type: ignore[call-arg]
    plain = index.faiss_index
    if index.refined_index is not None:
        plain = index.refined_index
        params = faiss.IndexRefineSearchParameters(  # type: ignore[call-arg]
            k_factor=index.refine_factor, base_index_params=params
        )
    return lambda part: plain.search(part, k, params=params)


def timed(searches: list[Search], queries: Vectors, args: argparse.Namespace) -> tuple[list[Items], list[float]]:
    """Answers [Q, k] of each, and the median CPU seconds a query; they take turns, so other work hits all alike."""
    batches = [queries[start : start + args.batch] for start in range(0, len(queries), args.batch)]
    items = [np.concatenate([search(batch)[1] for batch in batches]) for search in searches]  # warms up, too
    seconds: list[list[float]] = [[] for _ in searches]
    for _ in range(args.repeats):
        for place, search in enumerate(searches):
            begun = time.process_time()
            for batch in batches:
                search(batch)
            seconds[place].append((time.process_time() - begun) / len(queries))
    return items, [statistics.median(each) for each in seconds]


def recall(items: Items, truth: Items) -> float:
    """Share of the exact neighbours that are among the answers."""
    found = [np.isin(exact, answers).mean() for exact, answers in zip(truth, items, strict=True)]
    return float(np.mean(found))


def at_equal_recall(kinds: list[dict[str, Any]]) -> str:
    """Milliseconds a query of each kind at some recalls, between the two points that it lies between."""
    lines = ["", f"{'CPU ms a query at recall':<28}" + "".join(f"{recall:>8}" for recall in RECALLS)]
    for kind in kinds:
        points = sorted((point["recall"], point["ms_per_query"]) for point in kind["points"])
        found, times = np.array(points).T
        cells = []
        for wanted in RECALLS:
            reached = found[0] <= wanted <= found[-1]
            cells.append(f"{np.exp(np.interp(wanted, found, np.log(times))):>8.3f}" if reached else f"{'':>8}")
        lines.append(f"{kind['storage']:<28}" + "".join(cells))
    return "\n".join(lines)


def plot(kinds: list[dict[str, Any]], exact: dict[str, float] | None, args: argparse.Namespace) -> None:
    """Recall against milliseconds a query, one curve a kind."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5))
    for place, kind in enumerate(kinds):
        found = [point["recall"] for point in kind["points"]]
        own = "searched_bytes_per_item" in kind
        label = f"{kind['storage']}, {kind['searched_bytes_per_item']:.0f} bytes/item" if own else kind["storage"]
        times = [point["ms_per_query"] for point in kind["points"]]
        axes.plot(times, found, "o-" if own else "s--", color=f"C{place}", label=label, ms=4)
    if exact is not None:
        axes.plot([exact["ms_per_query"]], [1.0], "k*", ms=10, label="exact search")
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds of CPU time a query")
    axes.set_ylabel(f"recall@{args.k}")
    axes.set_title(f"{args.items:,} vectors of width {args.dim}, {args.threads} thread(s), batches of {args.batch}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(args.plot)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
