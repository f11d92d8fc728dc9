"""Speed of prepare, and the bound of its memory where the events do not fit.

For each number of events one process simulates them into Parquet files and a second one prepares a dataset from these
files, as a user with files would. Times are wall-clock, and CPU time of each working table and file; peak memory is the
highest resident set of each process, which holds Python, Arrow and DuckDB together.

    python benchmarks/prepare.py --events 10000000 50000000 --out prepare.json

With ``--spark`` the same files are then prepared on clusters, and the datasets compared; ``local-cluster[W,C,M]`` is a
standalone master with W workers of C cores and M MiB on this machine, whose executors are processes of their own.

    python benchmarks/prepare.py --events 50000000 --spark "local-cluster[1,1,3072]" "local-cluster[2,1,3072]"
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
from rich.console import Console
from rich.table import Table

from benchmarks.compare import made_by

SPARK = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.sql.shuffle.partitions": "16"}
EVENTS_A_USER = 100
EVENTS_AN_ITEM = 200

SIMULATE = """
import json, sys
from pathlib import Path
from mtmh.prepare.sources.synthetic import SyntheticOptions, simulate
task = json.loads(sys.argv[1])
simulate(SyntheticOptions(**task["options"]), 0, Path(task["folder"]))
"""

# CPU seconds of each working table and file, by its name; those of all queries of a few rows together as "counts".
PREPARE = """
import json, sys, time
from collections import Counter
from pathlib import Path
from mtmh.config import Config
from mtmh.prepare.duckdb_engine import DuckDbEngine
from mtmh.prepare.prepare import prepare
task, spent = json.loads(sys.argv[1]), Counter()

def timed(method):
    def call(engine, first, *others, **more):
        begun = time.process_time()
        found = method(engine, first, *others, **more)
        name = first if method.__name__ in ("read", "table", "append") else "counts"
        spent[first.func.__name__ if method.__name__ == "write" else name] += time.process_time() - begun
        return found
    return call

for name in ("read", "table", "append", "write", "rows", "ranges"):
    setattr(DuckDbEngine, name, timed(getattr(DuckDbEngine, name)))
prepare(Config(**task["config"]), Path(task["out"]))
spent["python, imports, the rest"] = time.process_time() - spent.total()
Path(task["spent"]).write_text(json.dumps(dict(spent.most_common())))
"""


def measure(program: str, task: dict[str, Any]) -> tuple[float, float]:
    """Seconds and peak resident GiB of a Python process that runs ``program``."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program, json.dumps(task)])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the measured process ended with code {process.returncode}")
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit / 2**30


def measure_events(
    num_events: int, memory_limit_gb: float, threads: int, folder: Path, clusters: list[str]
) -> dict[str, Any]:
    """Simulates and prepares ``num_events``, with DuckDB and on clusters."""
    options = {
        "num_events": num_events,
        "num_users": max(10, num_events // EVENTS_A_USER),
        "num_items": max(100, num_events // EVENTS_AN_ITEM),
    }
    simulate_s, simulate_gib = measure(SIMULATE, {"options": options, "folder": str(folder)})
    data = {
        "source": "tables",
        "input": str(folder),
        "events": ["events-*.parquet"],
        "items": ["items.parquet"],
        "columns": {
            "text": ["text"],
            "topic_l1": "topic_l1",
            "topic_l2": "topic_l2",
            "content_embedding": "content_embedding",
        },
        "id_features": ["creator", "styles"],
        "float_features": ["duration", "price", "quality"],
        "memory_limit_gb": memory_limit_gb,
        "threads": threads,
    }
    config = {"name": "benchmark", "paths": {"root": str(folder)}, "data": data}
    out = folder / "dataset"
    spent = folder / "spent.json"
    prepare_s, prepare_gib = measure(PREPARE, {"config": config, "out": str(out), "spent": str(spent)})
    cpu_seconds = json.loads(spent.read_text())
    manifest = json.loads((out / "manifest.json").read_text())
    summary = manifest["summary"]
    spark_seconds = {}
    for cluster in clusters:
        master = {"master": cluster, "options": SPARK | {"spark.executor.memory": executor_memory(cluster)}}
        on_spark = config | {"data": data | {"engine": "spark", "spark": master}}
        spark_seconds[cluster], _ = measure(
            PREPARE, {"config": on_spark, "out": str(folder / "spark"), "spent": str(spent)}
        )
        other = json.loads((folder / "spark" / "manifest.json").read_text())
        if other["files"] != manifest["files"]:
            raise SystemExit(f"{cluster} has made another dataset")
    return {
        **options,
        "num_train_events": summary["num_train_events"],
        "input_bytes": sum(path.stat().st_size for path in folder.glob("*.parquet")),
        "dataset_bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        "simulate_seconds": round(simulate_s, 2),
        "simulate_events_per_second": round(num_events / simulate_s),
        "simulate_peak_gib": round(simulate_gib, 3),
        "prepare_seconds": round(prepare_s, 2),
        "prepare_events_per_second": round(num_events / prepare_s),
        "prepare_peak_gib": round(prepare_gib, 3),
        "prepare_cpu_seconds": {name: round(seconds, 3) for name, seconds in cpu_seconds.items()},
        "spark_seconds": {cluster: round(seconds, 2) for cluster, seconds in spark_seconds.items()},
    }


def executor_memory(cluster: str) -> str:
    """The memory of an executor of a ``local-cluster``: that of its worker."""
    return f"{int(cluster.rstrip(']').split(',')[-1])}m"


def main() -> None:
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--memory-limit-gb", type=float, default=2.0, help="data.memory_limit_gb")
    parser.add_argument("--threads", type=int, default=2, help="data.threads")
    parser.add_argument("--spark", nargs="*", default=[], help="masters of Spark")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the files (default: the system's)")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    arguments = parser.parse_args()

    rows = []
    for num_events in arguments.events:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            rows.append(
                measure_events(num_events, arguments.memory_limit_gb, arguments.threads, Path(folder), arguments.spark)
            )

    machine = {
        "command": " ".join(["python", *sys.argv]),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "duckdb": duckdb.__version__,
        "load_average": os.getloadavg()[0],
    }
    table = Table(title=f"prepare ({machine['cores']} cores, DuckDB {machine['duckdb']}, {machine['command']})")
    for name in ("events", "simulate s", "events/s", "peak GiB", "prepare s", "events/s", "peak GiB"):
        table.add_column(name, justify="right")
    for row in rows:
        stages = [
            (row[f"{stage}_seconds"], row[f"{stage}_events_per_second"], row[f"{stage}_peak_gib"])
            for stage in ("simulate", "prepare")
        ]
        cells = [f"{seconds:.1f}, {rate:,}, {peak:.2f}".split(", ") for seconds, rate, peak in stages]
        table.add_row(f"{row['num_events']:,}", *cells[0], *cells[1])
    Console().print(table)
    for row in rows:
        spent = row["prepare_cpu_seconds"]
        print(f"{row['num_events']:,} events: {sum(spent.values()):.1f} s of CPU time, by table and file:")
        print("  " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items()))
        for cluster, seconds in row["spark_seconds"].items():
            print(f"{row['num_events']:,} events on {cluster}: {seconds:.1f} s, the same dataset")
    if arguments.out:
        arguments.out.write_text(json.dumps({"command": made_by(), "machine": machine, "results": rows}, indent=2))


if __name__ == "__main__":
    main()
