"""Command line of the embedding-lookup benchmark.

python -m benchmarks.lookup --preset quick --out results/lookup
python -m benchmarks.lookup --preset quick --out results/lookup-new --compare results/lookup/lookup.json
python -m benchmarks.lookup --preset full --out results/full --minutes 30; the same with --resume goes on
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.lookup import compare as gate
from benchmarks.lookup import runner
from benchmarks.lookup.cases import measurements, preset
from benchmarks.lookup.machine import copy_bandwidth, describe
from benchmarks.lookup.progress import Progress, Result
from benchmarks.lookup.report import render
from benchmarks.lookup.sharded import quiet
from mtmh.artifacts import write_atomically


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lookup", description="Embedding lookups beside the limits of the machine."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--preset",
        choices=("smoke", "quick", "full"),
        default="quick",
        help="smoke: a few seconds, figures mean nothing",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/lookup"), help="folder of lookup.json and lookup.html"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what the lookup.json in --out lacks")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after so long with what there is; 0: only the report"
    )
    parser.add_argument("--threads", type=int, help="intra-op threads of one process; default: as PyTorch chooses")
    parser.add_argument(
        "--ranks", type=int, help="ranks of the sharded cases, 0: none; default: 2 on CPU, all GPUs on CUDA"
    )
    parser.add_argument(
        "--compare", type=Path, metavar="OLD.JSON", help="exit 1 when a case is slower than in this run"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.15, help="slowdown, beyond both runs' quartiles, that fails"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure, write JSON and report, compare. Returns the exit status: 1 after a failed case or a slowdown."""
    given = arguments(argv)
    old = gate.load(given.compare) if given.compare else None  # before minutes are spent
    if given.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no CUDA device that torch can use")
    device = torch.device("cuda", torch.cuda.current_device()) if given.device == "cuda" else torch.device("cpu")
    threads = given.threads or torch.get_num_threads()
    ranks = given.ranks
    if ranks is None:
        ranks = torch.cuda.device_count() if given.device == "cuda" else 2
    quiet()
    torch.set_num_threads(threads)
    chosen = preset(given.preset, given.device, threads, ranks)
    facts = {
        "command": "python -m benchmarks.lookup " + shlex.join(sys.argv[1:] if argv is None else argv),
        "preset": given.preset,
        "ranks": ranks,
        "machine": describe(device, threads),
    }
    path = given.out / "lookup.json"
    facts = earlier(path, facts, resume=given.resume) or facts | {
        "copy": asdict(copy_bandwidth(device, chosen.seconds, chosen.samples))
    }
    given.out.mkdir(parents=True, exist_ok=True)
    progress = Progress(path, measurements(chosen, given.device, ranks), facts)
    print(f"copy bandwidth {facts['copy']['best'] / 1e9:.1f} GB/s ({facts['copy']['method']}); {progress.left()}")
    try:
        runner.run(chosen, device, progress, log=lambda line: print(line, flush=True), minutes=given.minutes)
    except KeyboardInterrupt:
        print("interrupted")
    progress.write()
    result = progress.result
    write_atomically(given.out / "lookup.html", render(result))
    print(
        f"{len(result['rows'])} figures, {len(result['skipped'])} skipped, {len(result['failed'])} failed, "
        f"{len(progress.missing)} missing: {given.out / 'lookup.html'}"
    )
    if progress.missing:
        print(f"incomplete ({progress.left()}): the same command with --resume goes on")
    print(f"other processes kept {result['cores_others_kept_busy']:.2f} cores busy meanwhile")
    slower = [] if old is None else report_changes(old, result, given.threshold)
    return 1 if slower or result["failed"] else 0


def earlier(path: Path, facts: Result, *, resume: bool) -> Result | None:
    """The run to go on with, if there is one.

    Raises:
        ValueError: it is of another preset or machine; or it is incomplete and would be lost.
    """
    if not path.exists():
        return None
    found = gate.load(path)
    if not resume:
        if found.get("missing"):
            raise ValueError(f"{path}: an incomplete run; go on with --resume, take another --out, or remove it")
        return None
    differences = [
        f"{name}: {found.get(name)} -> {facts[name]}" for name in ("preset", "ranks") if found.get(name) != facts[name]
    ]
    differences += gate.machine_differences(found, facts, facts["machine"])
    if differences:
        raise ValueError(f"{path}: --resume needs the same preset and machine, but {'; '.join(differences)}")
    return found


def report_changes(old: Result, new: Result, threshold: float) -> list[gate.Change]:
    """Print how the figures changed since the older run.

    Returns:
        Those that are slower by more than the threshold.
    """
    changes = gate.compare(old, new, threshold)
    for difference in gate.machine_differences(old, new):
        print(f"another machine: {difference}")
    for name in gate.missing(old, new):
        print(f"not measured now: {name}")
    print(gate.table(changes))
    slower = [change for change in changes if change.slower]
    print(f"{len(slower)} of {len(changes)} slower by more than {threshold:.0%} beyond the spread of both runs")
    return slower


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
