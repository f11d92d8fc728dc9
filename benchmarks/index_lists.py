"""Time and memory of merging the shards of inverted lists: the product's merge beside ``faiss.contrib.ondisk``.

Vectors are filed under the clusters of one index in shards, once as the product stores them and once as faiss writes an
index; then each merge runs in a process of its own, several times, and the shortest is taken. Both end in the same
lists. Peak memory counts mapped file pages, as a container does while they are in use.

    python -m benchmarks.index_lists --out index-lists.json      # 2M items, some minutes
    python -m benchmarks.index_lists --items 100000              # some seconds
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.ondisk import merge_ondisk

from benchmarks.index_build import peak_gib, write_vectors
from benchmarks.report import report_head
from mtmh.index import lists
from mtmh.index.storage import IvfSettings, train_ivf

WAYS = ("ours", "faiss")


def main() -> None:
    """Files the shards, merges them both ways, prints the table, writes JSON."""
    args = parse_args()
    if args.child is not None:
        # In a file, since faiss prints its progress.
        (args.child / f"{args.way}.json").write_text(json.dumps(merge(args.child, args.way)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        file_shards(root, args)
        rows: list[dict[str, Any]] = []
        print(f"{'merge':<8} {'time':>9} {'CPU':>9} {'peak':>10}")
        for way in WAYS:
            runs = [measured(root, way) for _ in range(args.runs)]
            rows.append({"merge": way, **min(runs, key=lambda run: run["seconds"]), "runs": runs})
            best = rows[-1]
            print(f"{way:<8} {best['seconds']:>7.2f} s {best['cpu_seconds']:>7.2f} s {best['peak_gib']:>6.2f} GiB")
        check_same_lists(root)
    if args.out is not None:
        args.out.write_text(json.dumps(report_head(args) | {"results": rows}, indent=2))


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--clusters", type=int, default=1024)
    parser.add_argument("--shard-items", type=int, default=262_144)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files go meanwhile: about 3 KiB an item")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def file_shards(root: Path, args: argparse.Namespace) -> None:
    """The trained, empty index, and the shards as each way stores them."""
    vectors = write_vectors(root / "vectors.npy", args.items, args.dim, seed=0)
    settings = IvfSettings(args.clusters, iterations=2)
    sample = np.concatenate([vectors.read(item, item + 1) for item in settings.sample(args.items)[:65_536].tolist()])
    index = train_ivf(sample, args.items, settings)
    faiss.write_index(index, str(root / "trained.faiss"))
    shards = lists.ListShards(root, "head", args.items, args.shard_items)
    filer = lists.ShardFiler(index)
    for shard in range(shards.count):
        filer.file(vectors, shards, shard)
        own, part = shards.items(shard), faiss.read_index(str(root / "trained.faiss"))
        part.add_with_ids(vectors.read(own.start, own.stop), np.arange(own.start, own.stop))
        faiss.write_index(part, str(root / f"{shard:06d}.faiss"))
    (root / "shards.json").write_text(json.dumps([args.items, args.shard_items]))


def measured(root: Path, way: str) -> dict[str, float]:
    """One merge, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.index_lists", "--child", str(root), "--way", way]
    (root / f"{way}.lists").unlink(missing_ok=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, float] = json.loads((root / f"{way}.json").read_text())
    return found


def merge(root: Path, way: str) -> dict[str, float]:
    """Merges the shards into ``<way>.lists`` and writes the index over them."""
    index: Any = faiss.read_index(str(root / "trained.faiss"))
    path = root / f"{way}.lists"
    begun, cpu, before = time.perf_counter(), time.process_time(), peak_gib()
    if way == "faiss":
        merge_ondisk(index, [str(part) for part in sorted(root.glob("[0-9]*.faiss"))], str(path))
    else:
        shards = lists.ListShards(root, "head", *json.loads((root / "shards.json").read_text()))
        offsets, code_size = shards.offsets(), int(index.code_size)
        sizes = lists.list_sizes(offsets)
        places = lists.list_places(sizes, code_size)
        lists.create_lists(path, sizes, code_size)
        for run in lists.merge_runs(sizes, code_size):
            lists.merge_lists(shards, offsets, run, int(places[run[0]]), code_size, path)
        lists.attach_lists(index, sizes, path)
    faiss.write_index(index, str(root / f"{way}.index"))
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gib": peak_gib() - before,
    }


def check_same_lists(root: Path) -> None:
    """Both files hold the same lists in the same order.

    Raises:
        ValueError: they do not.
    """
    ours, theirs = (np.fromfile(root / f"{way}.lists", np.uint8) for way in WAYS)
    if not np.array_equal(ours, theirs):
        raise ValueError("the two merges differ")


if __name__ == "__main__":
    main()
