"""Command line of the embedding-lookup benchmark.

python -m benchmarks.lookup --preset quick --out results/lookup
python -m benchmarks.lookup --preset quick --out results/lookup-new --compare results/lookup/lookup.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.lookup import compare as gate
from benchmarks.lookup import runner
from benchmarks.lookup.cases import preset
from benchmarks.lookup.report import render
from benchmarks.lookup.sharded import quiet


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
    result = runner.run(
        preset(given.preset, given.device, threads, ranks), device, ranks, log=lambda line: print(line, flush=True)
    )
    result |= {
        "command": "python -m benchmarks.lookup " + shlex.join(sys.argv[1:] if argv is None else argv),
        "preset": given.preset,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "lookup.json").write_text(json.dumps(result, indent=1) + "\n")
    (given.out / "lookup.html").write_text(render(result))
    print(
        f"{len(result['rows'])} figures, {len(result['skipped'])} skipped, {len(result['failed'])} failed: "
        f"{given.out / 'lookup.html'}"
    )
    print(f"other processes kept {result['cores_others_kept_busy']:.2f} cores busy meanwhile")
    slower = [] if old is None else report_changes(old, result, given.threshold)
    return 1 if slower or result["failed"] else 0


def report_changes(old: runner.Result, new: runner.Result, threshold: float) -> list[gate.Change]:
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
