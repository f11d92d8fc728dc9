"""Figures of a run so far, in a JSON file that is whole after every figure, and the list of those still missing."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from multiprocessing import active_children
from pathlib import Path
from statistics import median_low
from typing import Any, Literal

from benchmarks.lookup import machine
from benchmarks.lookup.cases import Measurement
from mtmh.artifacts import write_atomically

FORMAT = 1
Result = dict[str, Any]
Kind = Literal["rows", "skipped", "failed"]


class Progress:
    """The measurements of a run, done and missing.

    Args:
        path: of the JSON file.
        plan: all measurements, in the order of the report.
        result: ``machine``, ``copy``, ``command`` and what else describes the run; of a resumed run, its whole JSON.

    Attributes:
        result: ready for JSON. ``rows``, one for each measurement, ``skipped`` (no memory, too few GPUs), ``failed``
            (errors); ``missing``, how many by sweep; ``seconds`` of measuring and ``cores_others_kept_busy`` meanwhile,
            how quiet the machine was; ``written``, when.

    Raises:
        ValueError: a row is not in the plan.
    """

    def __init__(self, path: Path, plan: Iterable[Measurement], result: Result) -> None:
        self.path = path
        empty: dict[str, Any] = {"rows": [], "skipped": [], "failed": [], "seconds": 0.0, "cores_others_kept_busy": 0.0}
        self.result: Result = {"format": FORMAT} | empty | result
        self._plan = {_name(_entry(measurement)): measurement for measurement in plan}
        self._places = {name: place for place, name in enumerate(self._plan)}
        self._done = {_name(entry) for kind in ("rows", "skipped", "failed") for entry in self.result[kind]}
        strange = sorted(self._done - self._plan.keys())
        if strange:
            raise ValueError(f"{path}: holds figures that this preset has not, such as {strange[0]}")
        self._before = self.result["seconds"], self.result["cores_others_kept_busy"]
        self._began, self._cpu = time.perf_counter(), machine.cpu_seconds()

    @property
    def missing(self) -> list[Measurement]:
        """Neither measured nor left out, in the order of the report."""
        return [measurement for name, measurement in self._plan.items() if name not in self._done]

    def add(self, kind: Kind, measurement: Measurement, facts: Result) -> None:
        """Writes a figure, in every sweep that has it, or why there is none."""
        for name, other in self._plan.items():
            if other.figure == measurement.figure and name not in self._done:
                self._done.add(name)
                self.result[kind].append(_entry(other) | facts)
        self.result[kind].sort(key=lambda entry: self._places[_name(entry)])
        self.write()

    def write(self) -> None:
        """Writes the JSON."""
        self.result["missing"] = dict(Counter(measurement.sweep for measurement in self.missing))
        self.result["written"] = datetime.now(UTC).isoformat(timespec="seconds")
        if not active_children():  # whose CPU time counts as somebody else's until they end
            everybody, own = (now - then for now, then in zip(machine.cpu_seconds(), self._cpu, strict=True))
            seconds, busy = self._before
            self.result["seconds"] = seconds + time.perf_counter() - self._began
            spent = seconds * busy + max(0.0, everybody - own)
            self.result["cores_others_kept_busy"] = spent / self.result["seconds"]
        write_atomically(self.path, json.dumps(self.result, indent=1) + "\n")

    def left(self) -> str:
        """Number of missing measurements and the time they may take: the median of finished ones of like size.

        Low, since the first figure of sharded ones has waited for the processes to start.
        """
        took: defaultdict[tuple[bool, int] | None, list[float]] = defaultdict(list)
        for row in self.result["rows"]:
            size = _size(self._plan[_name(row)])
            for like in (size, None):
                took[like].append(row["seconds"])
        missing = self.missing
        if not took:
            return f"{len(missing)} left"
        sizes = (
            _size(measurement) for measurement in {measurement.figure: measurement for measurement in missing}.values()
        )
        seconds = sum(median_low(took.get(size) or took[None]) for size in sizes)
        return f"{len(missing)} left, about {seconds / 60:.1f} min"


def _entry(measurement: Measurement) -> Result:
    return {
        "sweep": measurement.sweep,
        "x": measurement.x,
        "kernel": measurement.kernel,
        "mode": measurement.mode,
        "case": asdict(measurement.case),
    }


def _name(entry: Result) -> str:
    """A measurement as a line, the same for its entry in a file."""
    return json.dumps([entry[key] for key in ("sweep", "x", "kernel", "mode", "case")])


def _size(measurement: Measurement) -> tuple[bool, int]:
    return measurement.sharded, round(math.log10(measurement.case.table_bytes))
