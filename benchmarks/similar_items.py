"""Time and memory of writing the answers of every item, as ``mtmh similar-items`` does, on one rank.

An index over simulated embeddings is built, then the answers of some of its items are written, whole shards through
the same function as the verb's; what all items would take follows from those. Opening the index is not in the rate,
which is of processor time, so that a busy machine shows what a quiet one would. More ranks divide the shards among them
and share nothing but the disk.

    python -m benchmarks.similar_items --out similar-items.json                    # 1M items, half an hour on a core
    python -m benchmarks.similar_items --items 20000 --asked 2000 --iterations 2   # a minute
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.index_build import index_config, peak_gib, write_world
from benchmarks.report import report_head


def main() -> None:
    """Builds, writes by every setting, prints the table, writes JSON."""
    args = parse_args()
    import faiss
    import torch

    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        write_world(root, args.items, args.dim, num_heads=2)
        build(root, args)
        print(
            f"{'items':>10} {'k_ann':>6} {'probes':>6} {'items/core-s':>12} {'all: core-h':>12} {'bytes/item':>10}"
            f" {'peak':>9}"
        )
        for k_ann in args.k_ann:
            rows.append(measure(root, k_ann, args))
            row = rows[-1]
            print(
                f"{row['items']:>10,} {k_ann:>6} {row['num_probes']:>6} {row['items_per_core_s']:>12.0f}"
                f" {row['core_hours']:>12.2f} {row['bytes_per_item']:>10.0f} {row['peak_gib']:>5.2f} GiB",
                flush=True,
            )
            if args.out is not None:
                args.out.write_text(json.dumps(report_head(args) | {"results": rows}, indent=2))


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000, help="of the catalogue")
    parser.add_argument("--asked", type=int, default=20_000, help="items whose answers are written")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, default=30, help="answers an item")
    parser.add_argument("--k-ann", type=int, nargs="+", default=[1000, 100], help="candidates a head")
    parser.add_argument("--clusters", type=int, help="default: the product's, about 4 * sqrt(items)")
    parser.add_argument("--iterations", type=int, default=20, help="of k-means")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the files go meanwhile: about 3 KiB an item")
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args()


def build(root: Path, args: argparse.Namespace) -> None:
    """The index, which finds its own probes."""
    from mtmh.index.build import build_index

    build_index(index_config(root, "flat", args.clusters, args.iterations), root / "index")


def measure(root: Path, k_ann: int, args: argparse.Namespace) -> dict[str, Any]:
    """Writes the answers of ``args.asked`` items, spread over the catalogue."""
    from mtmh.artifacts import open_artifact
    from mtmh.config import RetrievalConfig
    from mtmh.retrieval.retriever import Retriever
    from mtmh.retrieval.similar_items import write_similar_items

    config = index_config(root, "flat", args.clusters, args.iterations)
    retriever = Retriever.load(root / "index", RetrievalConfig(k=args.k, k_ann=k_ann, sorter="head-score"))
    step = max(1, args.items // args.asked)
    asked = list(range(0, step * args.asked, step))
    begun, computed = time.perf_counter(), time.process_time()
    made = write_similar_items(
        config,
        retriever,
        open_artifact(root / "index", "index"),
        root / f"similar-{k_ann}",
        items=asked,
        shard_items=5_000,
    )
    seconds, core_seconds = time.perf_counter() - begun, time.process_time() - computed
    written = sum(record.bytes for record in made.manifest.files.values())
    return {
        "items": args.items,
        "asked": len(asked),
        "k_ann": k_ann,
        "num_probes": retriever.num_probes,
        "seconds": seconds,
        "items_per_core_s": len(asked) / core_seconds,
        "core_hours": args.items * core_seconds / len(asked) / 3600.0,
        "bytes_per_item": written / len(asked),
        "peak_gib": peak_gib(),
    }


if __name__ == "__main__":
    main()
