"""The gate of the benchmarks: fails where a figure became worse than in an older run, beyond a threshold.

    make bench-compare runs/old/retrieval.json                                # measures anew, as the older run was made
    make bench-compare runs/old/retrieval.json NEW=runs/benchmarks/retrieval.json THRESHOLD=1.1
    python -m benchmarks.compare runs/old/retrieval.json --new retrieval.json # the same without make

Takes the JSON of any benchmark but the lookup suite, which has a gate of its own (``python -m benchmarks.lookup
--compare``). Each figure whose name tells which way is better is divided by the older one: times, memory and bytes
should not grow, rates and recall should not fall. Between two machines only figures that are ratios, recall and
bytes are compared, and so are they with ``--ratios``, for a machine that is busier now than it was.

Exit code 1: something became worse; 2: nothing could be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THRESHOLD = 1.25

# Endings of names. What is none of these says what was measured, or is a result that has no better and worse.
RATES = ("per_second", "per_cpu_second")
SHARES = ("recall", "ratio")
RATIOS = ("times_faiss", "times_unfiltered", "of_naive")
SIZES = ("bytes_per_item",)
COSTS = ("_ms", "ms_per_query", "seconds", "seconds_per_step", "_gb", "_gib", "_mib", "milliseconds")
# By these the entries of a list are told apart, not by their place: another run may have more.
NAMES = (
    "storage",
    "variant",
    "probes",
    "engine",
    "method",
    "case",
    "name",
    "ranks",
    "L",
    "events",
    "way",
    "connections",
    "share",
)


@dataclass(frozen=True)
class Change:
    """One figure in two runs.

    Attributes:
        name: where it stands in the JSON.
        before: in the older run.
        after: in the newer one.
        worse: how many times as bad; below 1: better.
    """

    name: str
    before: float
    after: float
    worse: float


def main() -> None:
    """Prints all changes, the worst first."""
    args = parse_args()
    try:
        old = load(args.old)
        new = load(args.new) if args.new else measured_again(old, args.old)
        ratios = args.ratios or old.get("machine") != new.get("machine")
        if ratios and not args.ratios:
            print("another machine: only ratios, recall and bytes are compared\n")
        changes = compare(old, new, ratios_only=ratios)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(table(changes, args.threshold))
    worse = [change for change in changes if change.worse > args.threshold]
    print(f"\n{len(worse)} of {len(changes)} figures are more than {args.threshold:g} times as bad")
    sys.exit(1 if worse else 0)


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="JSON of the older run")
    parser.add_argument("--new", type=Path, help="JSON of the newer run; default: the benchmark runs again")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="times as bad that is too bad")
    parser.add_argument("--ratios", action="store_true", help="compares only ratios, recall and bytes")
    return parser.parse_args()


def load(path: Path) -> dict[str, Any]:
    """The JSON of a run.

    Raises:
        ValueError: no such file, or not the JSON of a run.
    """
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected what a benchmark wrote by --out") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(result, dict):
        raise ValueError(f"{path}: expected what a benchmark wrote by --out, not a {type(result).__name__}")
    return result


def measured_again(old: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Runs the benchmark of an older run again with its settings; the JSON goes beside the older one.

    Raises:
        ValueError: the older run does not say how it was made, or the benchmark fails.
    """
    command = old.get("command")
    if not isinstance(command, list) or not command or not str(command[0]).startswith("benchmarks."):
        raise ValueError(f"{path}: does not say by which command it was made; give the newer run too (NEW=, --new)")
    out = path.with_name(f"{path.stem}.new.json")
    done = subprocess.run([sys.executable, "-m", *map(str, command), "--out", str(out)], check=False)
    if done.returncode:
        raise ValueError(f"python -m {' '.join(map(str, command))} failed with exit code {done.returncode}")
    return load(out)


def compare(old: Mapping[str, Any], new: Mapping[str, Any], *, ratios_only: bool = False) -> list[Change]:
    """Changes of all figures that both runs have, the worst first.

    Raises:
        ValueError: they have none in common.
    """
    before, after = dict(figures(old)), dict(figures(new))
    changes = []
    for name in before.keys() & after.keys():
        direction = _direction(name, ratios_only)
        if direction and before[name] > 0.0 and after[name] > 0.0:
            changes.append(Change(name, before[name], after[name], (after[name] / before[name]) ** direction))
    if not changes:
        raise ValueError("the runs have no figure in common that could be compared; are they of one benchmark?")
    return sorted(changes, key=lambda change: (-change.worse, change.name))


def figures(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a run with their places: ``cases/no filter/total/p50_ms``; settings are no figures."""
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        if math.isfinite(value):
            yield name, float(value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in ("settings", "machine", "command", "config"):
                yield from figures(part, f"{name}/{key}" if name else str(key))
    elif isinstance(value, list):
        for place, part in enumerate(value):
            own = [f"{key}={part[key]}" for key in NAMES if key in part] if isinstance(part, Mapping) else []
            yield from figures(part, f"{name}/{' '.join(own) or place}")


def table(changes: list[Change], threshold: float) -> str:
    """The changes as text, one a line."""
    lines = [f"{'before':>14} {'after':>14} {'times as bad':>13}"]
    for change in changes:
        mark = "WORSE " if change.worse > threshold else ""
        lines.append(f"{change.before:14.4g} {change.after:14.4g} {change.worse:13.2f}  {mark}{change.name}")
    return "\n".join(lines)


def _direction(name: str, ratios_only: bool) -> int:
    """1: a larger figure is worse; -1: a smaller one is; 0: neither, or not to be compared."""
    path = name.split("/")
    last = path[-1]
    if last.endswith(SHARES):
        return -1
    if last.endswith((*RATIOS, *SIZES)):
        return 1
    if ratios_only:
        return 0
    if last.endswith(RATES):
        return -1
    return 1 if any(part.endswith(COSTS) for part in (last, path[0])) else 0


def made_by() -> list[str]:
    """The module that runs and its arguments, without where the JSON goes: what `measured_again` takes."""
    spec = sys.modules["__main__"].__spec__
    arguments, skip = [], False
    for argument in sys.argv[1:]:
        if not skip and not argument.startswith("--out"):
            arguments.append(argument)
        skip = argument == "--out"
    return [spec.name if spec is not None else "", *arguments]


if __name__ == "__main__":
    main()
