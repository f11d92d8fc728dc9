"""Endurance test of the service: errors and memory under load, index swaps, additions and removals.

Clients ask without pause while index versions are published one after the other and fresh items come and go. Every
answer is checked: status, number of items, none twice, one known version. An added item must be found, and be in no
answer once it is removed. Exit code 1 if anything failed or memory grew.

    python -m benchmarks.soak --out soak.json                                  # 10 minutes, 20 swaps
    python -m benchmarks.soak --items 2000 --seconds 30 --swaps 5              # small
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving.client import Connection
from benchmarks.serving.server import ServerProcess
from benchmarks.serving.world import make_world

_KEY = "soak"
_FIRST_NEW_ID = 1_000_000_000
_GROWTH = 1.15  # of the median of the last quarter over the second quarter


class Soak:
    """State that the tasks share, and their findings."""

    def __init__(self, port: int, ids: list[int], versions: list[Path], end: float) -> None:
        self.port = port
        self.ids = ids
        self.versions = versions
        self.end = end
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.seen: Counter[str] = Counter()
        self.until_found: list[float] = []
        self.rss: list[tuple[float, float]] = []

    @property
    def goes_on(self) -> bool:
        """True until the time is over."""
        return time.monotonic() < self.end

    def fail(self, text: str) -> None:
        """Notes a failure."""
        self.counts["failed"] += 1
        if len(self.failures) < 50:
            self.failures.append(text)

    async def ask(self, connection: Connection, question: dict[str, Any], expected: int | None = None) -> bool:
        """One checked question; whether every answer has ``expected`` items (None: the question's k)."""
        try:
            reply = await connection.call("POST", "/v1/retrieve", question)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.fail(repr(error))
            return False
        if reply.status != 200:
            self.fail(f"{reply.status} {reply.body[:300]!r}")
            return False
        content = reply.json
        self.counts["answered"] += 1
        version = content["version"].partition("+")[0]
        self.seen[version] += 1
        if version not in {path.name for path in self.versions}:
            self.fail(f"unknown version {content['version']}")
        expected = question["k"] if expected is None else expected
        for answer in content["answers"]:
            items = [answered["item"] for answered in answer["items"]]
            if len(items) != expected or len(set(items)) != len(items):
                self.fail(f"{len(items)} items, {len(set(items))} distinct, expected {expected} to {question}")
                return False
        return True

    async def client(self, seed: int) -> None:
        """Asks questions of all forms."""
        source = random.Random(seed)
        async with Connection(self.port) as connection:
            while self.goes_on:
                k = source.choice([5, 10, 30])
                form: dict[str, Any] = {"triggers": source.choices(self.ids, k=source.randint(1, 5))}
                if source.random() < 0.2:
                    form = {"history": source.sample(self.ids, 20)}
                await self.ask(connection, {**form, "k": k, "alpha": source.randint(0, 100)})

    async def change_items(self, row_of: Callable[[int, int], dict[str, Any]], pause: float) -> None:
        """Adds an item that is like a known one, finds it, removes it, and sees that it is gone."""
        source = random.Random(0)
        number = _FIRST_NEW_ID
        async with Connection(self.port, _KEY) as connection:
            while self.goes_on:
                number += 1
                like = source.choice(self.ids)
                start = time.monotonic()
                added = await connection.call("POST", "/v1/items", {"items": [row_of(number, like)]})
                if added.status != 200:
                    self.fail(f"add: {added.status} {added.body[:300]!r}")
                    continue
                self.counts["added"] += 1
                question = {"triggers": [like], "k": 1, "filters": {"allow": [number]}}
                if await self.ask(connection, question) and await self.ask(connection, {"triggers": [number], "k": 10}):
                    self.until_found.append(time.monotonic() - start)
                await asyncio.sleep(pause)
                removed = await connection.call("DELETE", f"/v1/items/{number}")
                if removed.status != 200:
                    self.fail(f"remove: {removed.status} {removed.body[:300]!r}")
                    continue
                self.counts["removed"] += 1
                await self.ask(connection, question, expected=0)

    async def swap(self, swaps: int, seconds: float) -> None:
        """Publishes the versions in turn, evenly over the time."""
        from mtmh.index.versions import publish

        for number in range(swaps):
            await asyncio.sleep(seconds / (swaps + 1))
            version = self.versions[(number + 1) % len(self.versions)]
            await asyncio.to_thread(publish, version, keep=len(self.versions) + 1)
            self.counts["published"] += 1

    async def watch(self, process: psutil.Process, report: Callable[[], object], every: float) -> None:
        """Notes the memory of the service, and reports."""
        start = time.monotonic()
        while self.goes_on:
            self.rss.append((round(time.monotonic() - start, 1), process.memory_info().rss / 2**20))
            report()
            await asyncio.sleep(every)


def memory_growth(rss: list[tuple[float, float]]) -> float:
    """Median of the last quarter over the median of the second one."""
    sizes = [size for _, size in rss]
    quarter = max(1, len(sizes) // 4)
    return statistics.median(sizes[-quarter:]) / statistics.median(sizes[quarter : 2 * quarter] or sizes)


def row_maker(recipe: Path, port: int) -> Callable[[int, int], dict[str, Any]]:
    """Rows of new items: the features of the model not known, text and topics of the item they are like."""
    from mtmh.config import load_config
    from mtmh.data.dataset import open_dataset

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/index") as answer:
        names = json.load(answer)["features"]
    table = open_dataset(load_config(recipe).dataset_dir).items(["item_id", "text", "topic_l1", "topic_l2"])
    place = {item: row for row, item in enumerate(table.column("item_id").to_pylist())}

    def row(number: int, like: int) -> dict[str, Any]:
        shown = {name: table.column(name)[place[like]].as_py() for name in ("text", "topic_l1", "topic_l2")}
        return dict.fromkeys(names) | shown | {"item_id": number}

    return row


async def soak(args: argparse.Namespace, recipe: Path, server: ServerProcess) -> dict[str, Any]:
    """Runs everything beside each other; the report."""
    from mtmh.config import load_config
    from mtmh.data.dataset import open_dataset

    config = load_config(recipe)
    ids = open_dataset(config.dataset_dir).item_ids.tolist()
    versions = sorted((config.model_dir("index") / "versions").glob("[0-9]*"))
    shared = Soak(server.port, ids, versions, time.monotonic() + args.seconds)

    def report() -> dict[str, Any]:
        content = {
            "command": " ".join(sys.argv),
            "settings": {name: str(value) for name, value in vars(args).items()},
            "counts": dict(shared.counts),
            "answers_by_version": dict(shared.seen),
            "failures": shared.failures,
            "seconds_until_found": shared.until_found,
            "memory_growth": memory_growth(shared.rss) if shared.rss else None,
            "rss_mib": shared.rss,
        }
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(content, indent=1) + "\n")
        return content

    tasks = [shared.client(seed) for seed in range(args.clients)]
    tasks.append(shared.change_items(row_maker(recipe, server.port), args.pause))
    tasks.append(shared.swap(args.swaps, args.seconds))
    tasks.append(shared.watch(psutil.Process(server.process.pid), report, max(0.5, args.seconds / 200)))
    await asyncio.gather(*tasks)
    return report()


def main() -> None:
    """Makes the world, runs the soak, prints the table, writes JSON as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000, help="of the simulated catalogue")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/serving"), help="where it is made and kept")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between an addition and its removal")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    recipe = make_world(args.work, args.items, versions=3)
    # The load must be answered on any machine: what is measured here is not overload.
    settings = {"reload_seconds": 0.5, "timeout_ms": 30_000, "max_lag_ms": 30_000, "cache_mb": 8}
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(recipe, log=Path(folder) / "serve.log", settings=settings, key=_KEY) as server,
    ):
        found = asyncio.run(soak(args, recipe, server))
        code = server.stop()
    print_report(found)
    failed = len(found["failures"]) + (code != 0) + (found["memory_growth"] > _GROWTH)
    raise SystemExit(1 if failed else 0)


def print_report(found: dict[str, Any]) -> None:
    """The table."""
    for name in ("answered", "failed", "published", "added", "removed"):
        print(f"{name:<28}{found['counts'].get(name, 0):>10,}")
    for version, count in sorted(found["answers_by_version"].items()):
        print(f"answers of version {version:<9}{count:>10,}")
    if found["seconds_until_found"]:
        print(f"{'added until found, max s':<28}{max(found['seconds_until_found']):>10.2f}")
    rss = found["rss_mib"]
    for place in range(0, len(rss), max(1, len(rss) // 8)):
        print(f"memory after {rss[place][0]:>7.1f} s, MiB   {rss[place][1]:>10.0f}")
    print(f"{'last over second quarter':<28}{found['memory_growth']:>10.2f}")
    for failure in found["failures"][:5]:
        print("failure:", failure)


if __name__ == "__main__":
    main()
