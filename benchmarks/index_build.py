"""Memory and time of building an index, on one rank and on several.

Embeddings of the asked size are written to disk (a mixture of clusters of unequal sizes), then ``build_index`` runs
over them as ``mtmh build-index`` does, each rank a process of its own. Peak memory is the largest resident set of a
rank, from its start to its end; mapped file pages count. The libraries alone take the ``start`` column.

    python -m benchmarks.index_build --out index-build.json                       # 10M items, an hour on two cores
    python -m benchmarks.index_build --items 200000 --clusters 64 --iterations 2   # a minute
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.loader import build_dataset
from benchmarks.report import report_head
from mtmh.artifacts import open_artifact, write_artifact
from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.data.row_file import RowFile
from mtmh.data.schema import ITEMS
from mtmh.index.artifact import IndexSummary
from mtmh.tower.artifact import EmbeddingsSummary, vectors_file

HEADS = ["engagement", "relevance"]
CENTRES = 2000
# What is added to a centre: mostly of few dimensions, as in trained embeddings. Two vectors of one centre have a mean
# cosine of 0.49.
LATENT_DIM, LATENT_LENGTH, NOISE_LENGTH = 16, 1.0, 0.2

_ROWS = 65_536


def main() -> None:
    """Builds on every number of ranks, prints the table, writes JSON."""
    args = parse_args()
    if args.child is not None:
        build_in_rank(args)
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        write_world(root, args.items, args.dim, args.num_heads)
        print(
            f"{'storage':<8} {'ranks':>5} {'time':>9} {'start':>9} {'peak a rank':>12} {'bytes/item':>10} {'recall':>7}"
        )
        for storage in args.storage:
            for ranks in args.ranks:
                rows.append(measure(root, storage, ranks, args))
                print(
                    f"{storage:<8} {ranks:>5} {rows[-1]['seconds']:>7.0f} s {rows[-1]['start_gib']:>5.2f} GiB"
                    f" {max(rows[-1]['peak_gib']):>8.2f} GiB {rows[-1]['bytes_per_item']:>10.0f}"
                    f" {min(rows[-1]['recall'].values()):>7.3f}"
                )
                if args.out is not None:
                    args.out.write_text(json.dumps(report_head(args) | {"results": rows}, indent=2))


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--num-heads", type=int, default=2)
    parser.add_argument("--clusters", type=int, help="of an index; default: the product's, about 4 * sqrt(items)")
    parser.add_argument("--iterations", type=int, default=20, help="of k-means")
    parser.add_argument("--storage", nargs="+", default=["flat"], choices=["flat", "fp16", "sq8", "pq", "fastscan"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=1, help="of a rank")
    parser.add_argument("--folder", type=Path, help="where the files go meanwhile: about 3 KiB an item")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(root: Path, storage: str, ranks: int, args: argparse.Namespace) -> dict[str, Any]:
    """Builds once on so many ranks, by torchrun."""
    index = root / "index"
    begun = time.perf_counter()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "benchmarks.index_build", "--child", str(root), "--storage", storage]
    command += ["--threads", str(args.threads), "--iterations", str(args.iterations)]
    command += ["--clusters", str(args.clusters)] if args.clusters else []
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - begun
    artifact = open_artifact(index, "index")
    summary = IndexSummary.model_validate(artifact.summary)
    peaks = [json.loads(path.read_text()) for path in sorted(root.glob("rank-*.json"))]
    for path in root.glob("rank-*.json"):
        path.unlink()
    bytes_of_index = sum(record.bytes for name, record in artifact.manifest.files.items() if "item" not in name)
    shutil.rmtree(index)
    return {
        "storage": storage,
        "ranks": ranks,
        "items": summary.num_items,
        "dim": summary.dim,
        "heads": len(summary.heads),
        "clusters": summary.num_clusters,
        "seconds": seconds,
        "start_gib": peaks[0]["start_gib"],
        "peak_gib": [peak["peak_gib"] for peak in peaks],
        "bytes_per_item": bytes_of_index / summary.num_items / len(summary.heads),
        "recall": {head: found.recall for head, found in summary.ann_recall.items()},
    }


def build_in_rank(args: argparse.Namespace) -> None:
    """The work of one rank."""
    import faiss
    import torch
    import torch.distributed as dist

    from mtmh.index.build import build_index

    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    dist.init_process_group("gloo")
    start = peak_gib()
    build_index(index_config(args.child, args.storage[0], args.clusters, args.iterations), args.child / "index")
    measured = {"start_gib": start, "peak_gib": peak_gib()}
    (args.child / f"rank-{dist.get_rank():03d}.json").write_text(json.dumps(measured))
    dist.destroy_process_group()


def peak_gib() -> float:
    """The largest resident set of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20


def index_config(root: Path, storage: str, clusters: int | None, iterations: int = 20) -> Config:
    """A recipe over ``write_world``."""
    return Config.model_validate(
        {
            "name": "benchmark",
            "paths": {"root": str(root)},
            "data": {"source": "synthetic"},
            "index": {"storage": storage, "num_clusters": clusters, "iterations": iterations},
            # Finding a number of probes is no part of what is measured; so many clusters are kept of each item.
            "retrieval": {"num_probes": 16},
        }
    )


def write_world(root: Path, num_items: int, dim: int, num_heads: int) -> None:
    """A dataset and the embeddings of its items."""
    made = build_dataset(root / "plain", num_items, 100, 5.0, 1)
    columns: dict[str, Any] = {"item_id": np.arange(num_items), "train_count": made.item_table.train_count}
    columns |= {name: pa.nulls(num_items, pa.string()) for name in ("text", "image", "topic_l1", "topic_l2")}
    columns["first_seen"] = pa.nulls(num_items, pa.int64())
    with write_artifact(root / "dataset", "dataset", config={}) as writer:
        shutil.copytree(root / "plain", writer.folder, dirs_exist_ok=True)
        (writer.folder / "manifest.json").unlink()
        pq.write_table(pa.table(columns), writer.folder / ITEMS)
        writer.summary |= made.artifact.summary
    shutil.rmtree(root / "plain")
    inputs = {"dataset": open_dataset(root / "dataset").artifact}
    heads = HEADS[:num_heads]
    folder = index_config(root, "flat", None).model_dir("embeddings")
    with write_artifact(folder, "embeddings", config={}, inputs=inputs) as writer:
        for place, head in enumerate(heads):
            write_vectors(writer.folder / vectors_file(head), num_items, dim, seed=place)
        writer.summary |= EmbeddingsSummary(heads=heads, dim=dim, num_items=num_items).model_dump()


def write_vectors(path: Path, num_items: int, dim: int, seed: int, noise_seed: int | None = None) -> RowFile:
    """Unit vectors [num_items, dim] float32 around centres, whose shares fall as 1 / sqrt(rank)."""
    noise_seed = seed if noise_seed is None else noise_seed
    file = RowFile.create(path, np.float32, (num_items, dim))
    shares = 1.0 / np.sqrt(np.arange(1, CENTRES + 1))
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((CENTRES, dim), np.float32))
    directions = rng.standard_normal((LATENT_DIM, dim), np.float32)
    for start in range(0, num_items, _ROWS):
        rng = np.random.default_rng([noise_seed, start])
        count = min(_ROWS, num_items - start)
        chosen = centres[rng.choice(CENTRES, count, p=shares / shares.sum())]
        latent = unit(rng.standard_normal((count, LATENT_DIM), np.float32) @ directions)
        noise = unit(rng.standard_normal((count, dim), np.float32))
        file.write(start, unit(chosen + LATENT_LENGTH * latent + NOISE_LENGTH * noise))
    return file


def unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows of unit length."""
    scaled: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


if __name__ == "__main__":
    main()
