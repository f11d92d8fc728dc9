"""The gate: figures that became slower than in an older run, beyond a threshold and beyond the spread of both runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lookup.progress import FORMAT

SAME_MACHINE = ("cpu", "cores", "device", "gpu", "threads", "torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu")


@dataclass(frozen=True)
class Change:
    """One figure in two runs.

    Attributes:
        name: Kernel, mode and case.
        before: Median seconds of the older run.
        after: Median seconds of the newer run.
        surely: How much slower at least: the newer run's first quartile over the older run's third, less 1.
        slower: ``surely`` is above the threshold.
    """

    name: str
    before: float
    after: float
    surely: float
    slower: bool

    @property
    def change(self) -> float:
        """Relative change of the median time; positive is slower."""
        return self.after / self.before - 1


def load(path: Path) -> dict[str, Any]:
    """Read the JSON of a run.

    Raises:
        ValueError: No such file, not the JSON of a run, or of another format.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file; expected the lookup.json of an earlier run")
    try:
        result = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a lookup benchmark of format {FORMAT}")
    return result


def compare(old: dict[str, Any], new: dict[str, Any], threshold: float) -> list[Change]:
    """Changes of all figures both runs have, slowest change first.

    Raises:
        ValueError: The runs have no figure in common.
    """
    before, after = _timings(old), _timings(new)
    common = before.keys() & after.keys()
    if not common:
        raise ValueError("the runs have no case in common: compare runs of the same preset, device and threads")
    changes = []
    for name in sorted(common):
        surely = after[name]["q1"] / before[name]["q3"] - 1
        changes.append(Change(name, before[name]["median"], after[name]["median"], surely, slower=surely > threshold))
    return sorted(changes, key=lambda change: -change.change)


def missing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Figures of the older run that the newer one lacks."""
    return sorted(_timings(old).keys() - _timings(new).keys())


def machine_differences(old: dict[str, Any], new: dict[str, Any], names: Iterable[str] = SAME_MACHINE) -> list[str]:
    """Differences between the machines of two runs, so that a change may not be the code's."""
    pairs = [(name, old["machine"].get(name), new["machine"].get(name)) for name in names]
    return [f"{name}: {before} -> {after}" for name, before, after in pairs if before != after]


def table(changes: list[Change]) -> str:
    """The changes as text, one a line."""
    lines = [f"{'before ms':>10} {'after ms':>10} {'change':>8} {'surely':>8}"]
    lines += [
        f"{change.before * 1e3:10.3f} {change.after * 1e3:10.3f} {change.change:+8.1%} {change.surely:+8.1%}  "
        f"{'SLOWER ' if change.slower else ''}{change.name}"
        for change in changes
    ]
    return "\n".join(lines)


def _timings(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    found = {}
    for row in result["rows"]:
        case = " ".join(f"{name}={value}" for name, value in row["case"].items())
        found[f"{row['kernel']} {row['mode']} {case}"] = row["timing"]
    return found
