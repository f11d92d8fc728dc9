"""Endurance test of the service: errors and memory under load, swaps, additions, removals, compactions and kills.

Clients ask at a modest rate while index versions are published one after the other, fresh items come and go, and
compactions run. Every answer is checked: status, number of items, none twice, one version that is there. What was
answered to a write must hold: an added item is found, a removed one is in no answer. Compactions, `mtmh index add` and,
in the last third, the service itself are ended by SIGKILL at random moments; then all that was answered before is
asked for again. What a kill of the service cuts off is counted apart.

All of these have their moments on the clock; what is late is made up for, and the soak goes on until all are done, for
twice its time at most. Exit code 1 if anything failed, some are not done even then, or memory grew.

    python -m benchmarks.soak --out soak.json                                                # 30 minutes
    python -m benchmarks.soak --items 2000 --seconds 150 --swaps 4 --compactions 2 --kills 1 # small
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import psutil

from benchmarks.serving.client import Connection, Reply
from benchmarks.serving.server import ServerProcess
from benchmarks.serving.world import make_world

_KEY = "soak"
_FIRST_NEW_ID = 1_000_000_000
_GROWTH = 1.15  # of the median of the last quarter over the second quarter, before the service is killed first
_PRESENT = 20  # fresh items that are there at a time
_GONE = 50  # removed ones that are asked for
_KEPT_VERSIONS = 8

Row = dict[str, Any]


class Served:
    """The service, which is killed and started again on the same port.

    Attributes:
        up: set while it runs.
        lives: starts so far; a request that saw two of them was cut off by a kill.
        process: of the life now.
    """

    def __init__(self, recipe: Path, folder: Path) -> None:
        # The load must be answered on any machine: what is measured here is not overload.
        self._settings = {"reload_seconds": 0.5, "timeout_ms": 60_000, "max_lag_ms": 60_000, "cache_mb": 8}
        self._recipe = recipe
        self._folder = folder
        self.up = asyncio.Event()
        self.lives = 0
        self.port = 0
        self.process = self._start()

    def _start(self) -> ServerProcess:
        log = self._folder / f"serve-{self.lives}.log"
        server = ServerProcess(self._recipe, log=log, settings=self._settings, key=_KEY, port=self.port)
        self.port = server.port
        self.lives += 1
        self.up.set()
        return server

    async def kill(self) -> None:
        """SIGKILL, and another start."""
        self.up.clear()
        self.lives += 1
        await asyncio.to_thread(self.process.stop, signal.SIGKILL)
        self.process.__exit__()
        self.process = await asyncio.to_thread(self._start)


class Soak:
    """State that the tasks share, and their findings.

    Attributes:
        present: fresh items whose addition was answered, with their rows.
        gone: items whose removal was answered last.
        ended: whether the time is over and all is done.
    """

    def __init__(
        self, served: Served, recipe: Path, ids: list[int], row_of: Callable[[int, int], Row], seconds: float
    ) -> None:
        from mtmh.config import load_config

        self.served = served
        self.recipe = recipe
        self.ids = ids
        self.row_of = row_of
        self.versions = load_config(recipe).model_dir("index") / "versions"
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.seen: Counter[str] = Counter()
        self.until_found: list[float] = []
        self.until_up: list[float] = []
        self.rss: list[tuple[float, float]] = []
        self.load: list[float] = []
        self.present: dict[int, Row] = {}
        self.gone: list[int] = []
        self.changing = asyncio.Lock()  # one change at a time: what is expected is known then
        self.publishing = asyncio.Lock()
        self.ended = False
        self._start = time.monotonic()
        self._seconds = seconds
        self._life_of: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()
        self._numbers = iter(range(_FIRST_NEW_ID, 2 * _FIRST_NEW_ID))

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    @property
    def overdue(self) -> bool:
        """True when what is not done yet is left."""
        return self.elapsed > 2 * self._seconds

    async def due(self, share: float) -> None:
        """Waits until a share of the time is over; what is late does not wait."""
        await asyncio.sleep(max(0.0, share * self._seconds - self.elapsed))

    def fail(self, text: str) -> None:
        """Notes a failure."""
        self.counts["failed"] += 1
        if len(self.failures) < 50:
            self.failures.append(text)

    async def call(self, connection: Connection, method: str, path: str, content: Any = None) -> Reply | None:
        """One request; None: a kill cut it off."""
        await self.served.up.wait()
        life = self.served.lives
        if self._life_of.get(connection) != life:  # what it was connected to is dead
            connection.close()
            self._life_of[connection] = life
        try:
            return await connection.call(method, path, content)
        except (OSError, asyncio.IncompleteReadError) as error:
            if self.served.lives == life:
                self.fail(f"{method} {path}: {error!r}")
            else:
                self.counts["cut off by a kill"] += 1
            return None

    async def ask(self, connection: Connection, question: Row, expected: set[int] | None = None) -> bool:
        """One checked question; with ``expected`` these items are the answer; True if nothing is wrong."""
        reply = await self.call(connection, "POST", "/v1/retrieve", question)
        if reply is None:
            return True
        if reply.status != 200:
            self.fail(f"{reply.status} {reply.body[:300]!r} to {question}")
            return False
        self.counts["answered"] += 1
        version = reply.json["version"].partition("+")[0]
        if not self.seen[version] and not (self.versions / version).is_dir():
            self.fail(f"unknown version {version}")
        self.seen[version] += 1
        for answer in reply.json["answers"]:
            items = [answered["item"] for answered in answer["items"]]
            if len(set(items)) != len(items) or len(items) != (question["k"] if expected is None else len(expected)):
                self.fail(f"{len(items)} items, {len(set(items))} distinct, to {question}")
                return False
            if expected is not None and set(items) != expected:
                self.fail(f"{sorted(expected - set(items))} lacking, {sorted(set(items) - expected)} too many")
                return False
        return True

    async def check_all(self, connection: Connection) -> None:
        """All that was answered holds: items that were added are answers, removed ones are not."""
        async with self.changing:
            allowed = [*self.present, *self.gone]
            if not allowed:
                return
            question = {"triggers": [self.ids[0]], "k": len(allowed), "filters": {"allow": allowed}}
            if not await self.ask(connection, question, set(self.present)):
                self.counts["lost"] += 1
            self.counts["checks of all writes"] += 1

    async def write(self, connection: Connection, method: str, path: str, content: Any = None) -> Reply:
        """A write, sent again where a kill cut it off: an addition may be repeated, a second removal finds nothing."""
        while (reply := await self.call(connection, method, path, content)) is None:
            pass
        return reply

    async def add(self, connection: Connection, number: int, like: int, row: Row) -> None:
        """Adds an item, and finds it."""
        start = time.monotonic()
        added = await self.write(connection, "POST", "/v1/items", {"items": [row]})
        if added.status != 200:
            self.fail(f"add: {added.status} {added.body[:300]!r}")
            return
        self.counts["added"] += 1
        self.present[number] = row
        if await self.ask(connection, {"triggers": [like], "k": 1, "filters": {"allow": [number]}}, {number}):
            self.until_found.append(time.monotonic() - start)
        await self.ask(connection, {"triggers": [number], "k": 10})

    async def remove(self, connection: Connection, number: int) -> None:
        """Removes an item, and sees that it is no answer, and a trigger still."""
        life = self.served.lives
        removed = await self.write(connection, "DELETE", f"/v1/items/{number}")
        if removed.status != 200 and not (removed.status == 404 and self.served.lives != life):
            self.fail(f"remove: {removed.status} {removed.body[:300]!r}")
            return
        self.counts["removed"] += 1
        del self.present[number]
        self.gone = [*self.gone, number][-_GONE:]
        await self.ask(connection, {"triggers": [self.ids[0]], "k": 1, "filters": {"allow": [number]}}, set())
        await self.ask(connection, {"triggers": [number], "k": 10})

    async def client(self, seed: int, pause: float) -> None:
        """Asks questions of all forms."""
        source = random.Random(seed)
        async with Connection(self.served.port) as connection:
            while not self.ended:
                k = source.choice([5, 10, 30])
                form: Row = {"triggers": source.choices(self.ids, k=source.randint(1, 5))}
                if source.random() < 0.2:
                    form = {"history": source.sample(self.ids, 20)}
                await self.ask(connection, {**form, "k": k, "alpha": source.randint(0, 100)})
                await asyncio.sleep(source.expovariate(1 / pause))

    async def change_items(self, pause: float) -> None:
        """Adds items that are like known ones, and removes the oldest."""
        source = random.Random(0)
        async with Connection(self.served.port, _KEY) as connection:
            while not self.ended:
                async with self.changing:
                    number, like = next(self._numbers), source.choice(self.ids)
                    await self.add(connection, number, like, self.row_of(number, like))
                    if len(self.present) > _PRESENT:
                        await self.remove(connection, next(iter(self.present)))
                await asyncio.sleep(pause)

    async def swap(self, swaps: int, versions: list[Path]) -> None:
        """Publishes versions in turn, evenly over the time."""
        from mtmh.index.versions import publish

        for number in range(swaps):
            await self.due((number + 1) / (swaps + 1))
            async with self.publishing:
                if self.overdue:
                    return
                await asyncio.to_thread(publish, versions[(number + 1) % len(versions)], keep=_KEPT_VERSIONS)
                self.counts["published"] += 1

    async def compact(self, compactions: int, kills: int) -> None:
        """Runs `mtmh index compact` evenly over the time, and after some others that are killed at random moments."""
        source = random.Random(1)
        words = ["index", "compact", str(self.recipe), "--set", f"index.keep_versions={_KEPT_VERSIONS}"]
        for number in range(compactions):
            await self.due((number + 1) / (compactions + 2))
            if self.overdue:
                return
            start = time.monotonic()
            await self._compact(words, None)
            spent = time.monotonic() - start
            while self.counts["compactions killed"] < (number + 1) * kills // compactions and not self.overdue:
                await self._compact(words, source.uniform(0, spent))

    async def _compact(self, words: list[str], kill_after: float | None) -> None:
        async with self.publishing:
            whole = await self._verb(words, kill_after)
        self.counts["compacted" if whole else "compactions killed"] += 1
        await self._recheck()

    async def add_by_verb(self, kills: int, folder: Path) -> None:
        """Runs `mtmh index add`, killed at random moments; the item is there, or may be added again."""
        source, spent = random.Random(2), 0.0
        async with Connection(self.served.port, _KEY) as connection:
            while (killed := self.counts["writers killed"]) < kills:
                await self.due((killed + 1) / (kills + 2) if spent else 0.0)
                if self.overdue:
                    return
                async with self.changing:
                    number, like = next(self._numbers), source.choice(self.ids)
                    row = self.row_of(number, like)
                    file = folder / "new.jsonl"
                    file.write_text(json.dumps(row) + "\n")
                    start = time.monotonic()
                    words = ["index", "add", str(self.recipe), str(file)]
                    # The first one is whole, and tells how long it takes.
                    if await self._verb(words, kill_after=source.uniform(0.3, 1.1) * spent if spent else None):
                        spent = time.monotonic() - start
                        self.counts["added by the verb"] += 1
                    else:
                        self.counts["writers killed"] += 1
                    await self.add(connection, number, like, row)
                await self._recheck()

    async def kill_service(self, kills: int) -> None:
        """Kills the service in the last third of the time, and asks for all that was answered."""
        source = random.Random(3)
        for number in range(kills):
            await self.due((2 + (number + source.uniform(0.1, 0.7)) / kills) / 3)
            if self.overdue:
                return
            start = time.monotonic()
            await self.served.kill()
            self.until_up.append(time.monotonic() - start)
            self.counts["services killed"] += 1
            await self._recheck()

    async def watch(self, report: Callable[[], object]) -> None:
        """Notes the memory of the service until it is killed first, and the machine's load, and reports."""
        process = psutil.Process(self.served.process.process.pid)
        while not self.ended:
            if self.served.lives == 1:
                self.rss.append((round(self.elapsed, 1), process.memory_info().rss / 2**20))
            self.load.append(os.getloadavg()[0])
            report()
            await asyncio.sleep(max(0.5, self._seconds / 300))

    async def _verb(self, words: list[str], kill_after: float | None) -> bool:
        """Runs a verb; False: it was killed."""
        command = [sys.executable, "-m", "mtmh.cli", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            output, _ = await asyncio.to_thread(process.communicate, timeout=kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.communicate)
            return False
        if process.returncode:
            self.fail(f"mtmh {' '.join(words[:2])}: {process.returncode} {output[-500:]}")
        return True

    async def _recheck(self) -> None:
        async with Connection(self.served.port) as connection:
            await self.check_all(connection)


def memory_growth(rss: list[tuple[float, float]]) -> float:
    """Median of the last quarter over the median of the second one."""
    sizes = [size for _, size in rss]
    quarter = max(1, len(sizes) // 4)
    return statistics.median(sizes[-quarter:]) / statistics.median(sizes[quarter : 2 * quarter] or sizes)


def row_maker(recipe: Path, port: int) -> tuple[list[int], Callable[[int, int], Row]]:
    """The ids of the catalogue; and rows of new items: nothing known but text and topics of one that they are like."""
    from mtmh.config import load_config
    from mtmh.data.dataset import open_dataset

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/index") as answer:
        names = json.load(answer)["features"]
    table = open_dataset(load_config(recipe).dataset_dir).items(["item_id", "text", "topic_l1", "topic_l2"])
    ids = table.column("item_id").to_pylist()
    place = {item: row for row, item in enumerate(ids)}

    def row(number: int, like: int) -> Row:
        shown = {name: table.column(name)[place[like]].as_py() for name in ("text", "topic_l1", "topic_l2")}
        return dict.fromkeys(names) | shown | {"item_id": number}

    return ids, row


async def soak(args: argparse.Namespace, recipe: Path, versions: list[Path], folder: Path) -> dict[str, Any]:
    """Runs everything beside each other; the report."""
    served = Served(recipe, folder)
    try:
        shared = Soak(served, recipe, *row_maker(recipe, served.port), args.seconds)

        asked_for = {
            "published": args.swaps,
            "compacted": args.compactions,
            "compactions killed": args.compaction_kills,
            "writers killed": args.writer_kills,
            "services killed": args.kills,
        }

        def report() -> dict[str, Any]:
            content = {
                "command": " ".join(sys.argv),
                "settings": {name: str(value) for name, value in vars(args).items()},
                "seconds": shared.elapsed,
                "load_average": shared.load,
                "counts": dict(shared.counts),
                "missing": {
                    name: number - shared.counts[name]
                    for name, number in asked_for.items()
                    if shared.counts[name] < number
                },
                "answers_by_version": dict(shared.seen),
                "failures": shared.failures,
                "seconds_until_found": shared.until_found,
                "seconds_until_up": shared.until_up,
                "memory_growth": memory_growth(shared.rss) if shared.rss else None,
                "rss_mib": shared.rss,
            }
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(content, indent=1) + "\n")
            return content

        async def timetable() -> None:
            await asyncio.gather(
                shared.swap(args.swaps, versions),
                shared.compact(args.compactions, args.compaction_kills),
                shared.add_by_verb(args.writer_kills, folder),
                shared.kill_service(args.kills),
                shared.due(1.0),
            )
            shared.ended = True

        await asyncio.gather(
            *(shared.client(seed, args.clients / args.rate) for seed in range(args.clients)),
            shared.change_items(args.pause),
            shared.watch(report),
            timetable(),
        )
        await shared._recheck()
        if code := served.process.stop():
            shared.fail(f"the service ended with {code}")
        return report()
    finally:
        served.process.__exit__()


def main() -> None:
    """Makes the world, runs the soak, prints the table, writes JSON as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000, help="of the simulated catalogue")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/serving"), help="where it is made and kept")
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--compactions", type=int, default=8, help="that are whole")
    parser.add_argument("--compaction-kills", type=int, default=4, help="others, killed")
    parser.add_argument("--writer-kills", type=int, default=8, help="of mtmh index add")
    parser.add_argument("--kills", type=int, default=4, help="of the service")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rate", type=float, default=10.0, help="questions a second, of all clients together")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between an addition and the next")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    recipe = make_world(args.work, args.items, versions=3)
    versions = sorted((recipe.parent / "served" / "index" / "versions").glob("[0-9]*"))[:3]
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(soak(args, recipe, versions, Path(folder)))
    print_report(found)
    raise SystemExit(1 if found["failures"] or found["missing"] or found["memory_growth"] > _GROWTH else 0)


def print_report(found: dict[str, Any]) -> None:
    """The table."""
    for name in ("answered", "failed", "lost"):
        print(f"{name:<28}{found['counts'].get(name, 0):>10,}")
    for name, count in sorted(found["counts"].items()):
        if name not in ("answered", "failed", "lost"):
            print(f"{name:<28}{count:>10,}")
    for version, count in sorted(found["answers_by_version"].items()):
        print(f"answers of version {version:<9}{count:>10,}")
    for name in ("seconds_until_found", "seconds_until_up"):
        if found[name]:
            print(f"{name.replace('_', ' ') + ', most':<28}{max(found[name]):>10.2f}")
    rss = found["rss_mib"]
    for place in range(0, len(rss), max(1, len(rss) // 8)):
        print(f"memory after {rss[place][0]:>7.1f} s, MiB   {rss[place][1]:>10.0f}")
    print(f"{'last over second quarter':<28}{found['memory_growth']:>10.2f}")
    print(f"{'seconds':<28}{found['seconds']:>10.0f}")
    print(f"{'load average, mean':<28}{statistics.fmean(found['load_average']):>10.1f}")
    for name, number in found["missing"].items():
        print(f"not done: {number} {name}")
    for failure in found["failures"][:5]:
        print("failure:", failure)


if __name__ == "__main__":
    main()
