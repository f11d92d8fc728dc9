"""Shards of the catalogue's embeddings: written by any number of ranks, none twice, and put together at the end."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mtmh.data.arrays import open_array
from mtmh.data.row_file import create_array
from mtmh.distributed.ranks import Ranks, on_first

logger = logging.getLogger(__name__)

PLAN = Path("plan.json")


@contextmanager
def progress_bar(num_items: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar with items/s of this rank; yields what to tell of items that are done."""
    columns = (
        TextColumn("embedding items"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    begun, done = time.perf_counter(), 0
    with Progress(*columns, disable=not shown) as progress:
        task = progress.add_task("embedding items", total=num_items, rate="")

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress.update(task, advance=count, rate=f"{done / (time.perf_counter() - begun):,.0f} items/s")

        yield advance


@dataclass(frozen=True)
class EmbeddingShards:
    """The shards of a run and where the finished ones are.

    A shard is finished when its record is there: the record is written last, under its final name in one step.

    Attributes:
        folder: ``<out>.parts``.
        num_items: of the catalogue.
        shard_items: of a shard, the last one may be smaller.
    """

    folder: Path
    num_items: int
    shard_items: int

    @classmethod
    def plan(
        cls, out: Path, num_items: int, shard_items: int, facts: Mapping[str, Any], ranks: Ranks
    ) -> EmbeddingShards:
        """Finds what an interrupted run has left of the same shards and facts; drops what another one has.

        Args:
            out: folder of the content artifact.
            num_items: of the catalogue.
            shard_items: of a shard.
            facts: all that decides the embeddings, as JSON.
            ranks: this process among the others.
        """
        parts = cls(out.with_name(f"{out.name}.parts"), num_items, shard_items)
        on_first(ranks, lambda: parts._prepare({**facts, "shard_items": shard_items}))
        return parts

    def _prepare(self, plan: dict[str, Any]) -> None:
        path = self.folder / PLAN
        if path.is_file() and json.loads(path.read_text()) == plan:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        path.write_text(json.dumps(plan))

    @property
    def num_shards(self) -> int:
        """Shards of the catalogue."""
        return -(-self.num_items // self.shard_items)

    def own(self, ranks: Ranks) -> list[int]:
        """This rank's part of the shards that are not finished, in order; all ranks call it together."""
        return on_first(ranks, self._missing)[ranks.rank :: ranks.world_size]

    def _missing(self) -> list[int]:
        todo = [shard for shard in range(self.num_shards) if not self._record(shard).is_file()]
        if len(todo) < self.num_shards:
            logger.info("%s: %d of %d shards are finished", self.folder, self.num_shards - len(todo), self.num_shards)
        return todo

    def items(self, shard: int) -> npt.NDArray[np.int64]:
        """Item indices of a shard."""
        return np.arange(shard * self.shard_items, min((shard + 1) * self.shard_items, self.num_items))

    def write(
        self, shard: int, rows: npt.NDArray[np.floating[Any]], counts: Mapping[str, int], broken: Sequence[int] = ()
    ) -> None:
        """Stores a finished shard: its embeddings [n, D], what was counted, and some items with a broken image."""
        np.save(self._file(shard), rows)
        record = self._record(shard)
        aside = record.with_suffix(".tmp")
        aside.write_text(json.dumps({"counts": counts, "broken": list(broken)}))
        aside.rename(record)

    def assemble(self, path: Path, dtype: npt.DTypeLike, dim: int) -> tuple[Counter[str], list[int]]:
        """Puts the shards together into one file [I, dim]; returns the sums of counts and the broken items."""
        embeddings = create_array(path, dtype, (self.num_items, dim))
        counts: Counter[str] = Counter()
        broken: list[int] = []
        for shard in range(self.num_shards):
            record = json.loads(self._record(shard).read_text())
            embeddings[self.items(shard)] = open_array(self._file(shard))
            counts += Counter(record["counts"])
            broken += record["broken"]
        embeddings.flush()
        return counts, broken

    def _file(self, shard: int) -> Path:
        return self.folder / f"part-{shard:06d}.npy"

    def _record(self, shard: int) -> Path:
        return self.folder / f"part-{shard:06d}.json"
