"""Load test of the service: its highest rate, answer times at 50 and 90 percent of that, and behaviour at overload.

Closed loop (so many clients, each waits for its answer) finds the capacity; open loop (arrivals at random times,
whether or not the earlier are answered) finds the latency at shares of it. Latency counts from the time a request was
due, so a service that stalls cannot hide it. Client and service run on the same machine and share its cores.

    python -m benchmarks.http_load --out http.json                                  # full size
    python -m benchmarks.http_load --items 5000 --seconds 3 --connections 1 8 32    # small
    python -m benchmarks.http_load --recipe mine.yaml --workload user               # your index, 50 items a user
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import made_by
from benchmarks.serving.client import Connection
from benchmarks.serving.server import ServerProcess
from benchmarks.serving.world import make_world

Ask = Callable[[], dict[str, Any]]

_OPEN_CONNECTIONS = 1024  # more requests than this at a time are not sent, and counted as such


@dataclass
class Measured:
    """Answers of one run.

    Attributes:
        seconds: it took.
        latencies: of requests that were answered 200, in seconds since they were due.
        since_sent: the same since they were sent: what a client that is late itself adds is not in them.
        statuses: how many of each status; ``failed``: no answer; ``unsent``: no connection was free.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    since_sent: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """The figures of a row."""
        sorted_ms = 1000 * np.array(self.latencies or [np.nan])
        p50, p90, p99 = (float(value) for value in np.percentile(sorted_ms, [50, 90, 99]))
        return {
            "answered_per_s": len(self.latencies) / self.seconds,
            "p50_ms": p50,
            "p90_ms": p90,
            "p99_ms": p99,
            "max_ms": float(sorted_ms.max()),
            "p99_since_sent_ms": 1000 * float(np.percentile(self.since_sent or [np.nan], 99)),
            "statuses": dict(self.statuses),
        }


async def ask_once(connection: Connection, ask: Ask, due: float, measured: Measured) -> None:
    """One request; its latency counts from ``due``."""
    question, sent = ask(), time.perf_counter()
    try:
        reply = await connection.call("POST", "/v1/retrieve", question)
    except (OSError, asyncio.IncompleteReadError):
        measured.statuses["failed"] += 1
        return
    measured.statuses[str(reply.status)] += 1
    if reply.status == 200:
        measured.latencies.append(time.perf_counter() - due)
        measured.since_sent.append(time.perf_counter() - sent)


async def closed_loop(port: int, ask: Ask, clients: int, seconds: float) -> Measured:
    """``clients`` that each ask, wait for the answer, and ask again."""
    measured = Measured()
    start = time.perf_counter()

    async def client() -> None:
        async with Connection(port) as connection:
            while time.perf_counter() < start + seconds:
                await ask_once(connection, ask, time.perf_counter(), measured)

    await asyncio.gather(*(client() for _ in range(clients)))
    measured.seconds = time.perf_counter() - start
    return measured


async def open_loop(port: int, ask: Ask, rate: float, seconds: float, seed: int) -> Measured:
    """Requests that arrive as a Poisson process of ``rate`` a second."""
    measured = Measured()
    random_source = random.Random(seed)
    free = [Connection(port) for _ in range(_OPEN_CONNECTIONS)]
    running: set[asyncio.Task[None]] = set()
    start = due = time.perf_counter()

    async def answer(connection: Connection, due: float) -> None:
        try:
            await ask_once(connection, ask, due, measured)
        finally:
            free.append(connection)

    while (due := due + random_source.expovariate(rate)) < start + seconds:
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        if not free:
            measured.statuses["unsent"] += 1
            continue
        task = asyncio.create_task(answer(free.pop(), due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    measured.seconds = time.perf_counter() - start
    for connection in free:
        connection.close()
    return measured


def asker(recipe: Path, workload: str, k: int, seed: int) -> Ask:
    """Requests for random items of the recipe's catalogue."""
    from mtmh.config import load_config
    from mtmh.data.dataset import open_dataset

    ids = open_dataset(load_config(recipe).dataset_dir).item_ids.tolist()
    random_source = random.Random(seed)
    if workload == "user":
        return lambda: {"history": random_source.choices(ids, k=50), "k": k}
    return lambda: {"triggers": [random_source.choice(ids)], "k": k}


def print_row(name: str, load: str, row: dict[str, Any]) -> None:
    """One line of the table."""
    statuses = ", ".join(f"{status} {count}" for status, count in sorted(row["statuses"].items()))
    print(
        f"{name:<16}{load:<22}{row['answered_per_s']:>9.0f}{row['p50_ms']:>9.1f}{row['p90_ms']:>9.1f}"
        f"{row['p99_ms']:>9.1f}{row['max_ms']:>9.1f}{row['p99_since_sent_ms']:>12.1f}  {statuses}",
        flush=True,
    )


def main() -> None:
    """Runs all cases, prints the table, writes JSON as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, help="a recipe with a built index; default: one over simulated items")
    parser.add_argument("--items", type=int, default=100_000, help="of the simulated catalogue")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/serving"), help="where it is made and kept")
    parser.add_argument("--workload", choices=["item", "user"], default="item")
    parser.add_argument("--k", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each case")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.9, 1.5, 3.0], help="of the capacity")
    parser.add_argument("--threads", type=int, help="of the service; default: its own")
    parser.add_argument("--batch-triggers", type=int, nargs="+", default=[1, 64], help="1: no batches")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    recipe = args.recipe or make_world(args.work, args.items)
    report: dict[str, Any] = {
        "command": made_by(),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "settings": {name: str(value) for name, value in vars(args).items()},
        "rows": [],
    }
    heads = "".join(f"{name:>9}" for name in ("answers/s", "p50 ms", "p90 ms", "p99 ms", "max ms"))
    print(f"{'batches':<16}{'load':<22}{heads}{'p99 of sent':>12}  statuses")
    for batch in args.batch_triggers:
        settings = {"batch_triggers": batch, "cache_mb": 0, **({"threads": args.threads} if args.threads else {})}
        with (
            tempfile.TemporaryDirectory() as folder,
            ServerProcess(recipe, log=Path(folder) / "serve.log", settings=settings) as server,
        ):
            run_cases(server.port, "none" if batch == 1 else f"up to {batch}", recipe, args, report)


def run_cases(port: int, name: str, recipe: Path, args: argparse.Namespace, report: dict[str, Any]) -> None:
    """All cases against one service."""

    def record(load: str, measured: Measured) -> dict[str, Any]:
        row = {"batches": name, "load": load, **measured.summary()}
        print_row(name, load, row)
        report["rows"].append(row)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(report, indent=1) + "\n")
        return row

    ask = asker(recipe, args.workload, args.k, seed=0)
    asyncio.run(closed_loop(port, ask, 4, min(2.0, args.seconds)))  # warms up
    capacity = 0.0
    for clients in args.connections:
        measured = asyncio.run(closed_loop(port, ask, clients, args.seconds))
        row = record(f"closed, {clients} clients", measured)
        capacity = max(capacity, row["answered_per_s"])
    for place, share in enumerate(args.shares):
        measured = asyncio.run(open_loop(port, ask, share * capacity, args.seconds, seed=place))
        record(f"open, {share:.0%} ({share * capacity:.0f}/s)", measured)


if __name__ == "__main__":
    main()
