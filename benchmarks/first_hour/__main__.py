"""Runs the checks of the first hour on a GPU one after the other, each in a process of its own.

What is done is in ``first-hour.json``, and for people in ``first-hour.html``, after every check; a call that ends early
is gone on with by the same call. A check that failed is tried again. Exit code 1 while one has failed or is not done.

    make gpu                                                          # ten minutes on one GPU
    python -m benchmarks.first_hour --device cpu --small --out /tmp/x # the harness, where there is no GPU
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.first_hour.checks import CHECKS
from mtmh.artifacts import write_atomically
from mtmh.pages.page import Tone, callout, cell, note, page, pairs, row, section, table

RESULTS = "first-hour.json"
PAGE = "first-hour.html"
_TAIL = 4000  # characters of what a failed check said


def main(argv: list[str] | None = None) -> int:
    """Runs what is not done yet, within the time; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a few seconds a check; figures mean nothing")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    parser.add_argument("--minutes", type=float, default=9.5, help="of this call; a check that would not fit waits")
    parser.add_argument("--out", type=Path, default=Path("runs/first-hour"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    settings = {"device": args.device, "small": args.small}
    report = _earlier(args.out / RESULTS, settings)
    for name in args.only:
        if report["checks"].get(name, {}).get("state") == "passed":
            print(f"{name}: done before")
            continue
        left = end - time.monotonic()
        if left < (5 if args.small else CHECKS[name].seconds):
            print(f"{name}: {left:.0f} s are left, which is too short; call again")
            continue
        report["checks"][name] = found = _run(name, args, left)
        print(
            f"{name}: {found['state']} in {found['seconds']:.0f} s {json.dumps(found.get('figures', ''))}", flush=True
        )
        write_atomically(args.out / RESULTS, json.dumps(report, indent=1) + "\n")
        write_atomically(args.out / PAGE, show(report))
    states = [report["checks"].get(name, {}).get("state") for name in args.only]
    return 0 if all(state == "passed" for state in states) else 1


def _earlier(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Results of an earlier call with these settings; otherwise none."""
    if path.is_file():
        report: dict[str, Any] = json.loads(path.read_text())
        if report["settings"] == settings:
            return report
    return {"settings": dict(settings), "checks": {}}


def _run(name: str, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """One check in a process that may crash, hang or run out of memory."""
    result = args.out / f"{name.replace(' ', '-')}.json"
    result.unlink(missing_ok=True)
    words = ["--device", args.device, "--folder", str(args.out), "--result", str(result)]
    command = [sys.executable, "-m", "benchmarks.first_hour.checks", name, *words, *(["--small"] if args.small else [])]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        said, state = done.stdout + done.stderr, "passed" if done.returncode == 0 else "failed"
    except subprocess.TimeoutExpired as error:
        said = "".join(part.decode() for part in (error.stdout, error.stderr) if isinstance(part, bytes))
        state = "not done in time"
    found = {"state": state, "seconds": time.monotonic() - start}
    if result.is_file():
        found |= json.loads(result.read_text())
    return found if state == "passed" else found | {"said": said[-_TAIL:]}


def show(report: Mapping[str, Any]) -> str:
    """The page."""
    checks: Mapping[str, Any] = report["checks"]
    passed = [name for name, found in checks.items() if found["state"] == "passed"]
    others = [f"{name}: {found['state']}" for name, found in checks.items() if found["state"] != "passed"]
    rest = [f"{name}: not begun" for name in CHECKS if name not in checks]
    machine: Mapping[str, str] = next((found["machine"] for found in checks.values() if "machine" in found), {})
    rows = []
    for name, found in checks.items():
        tone: Tone = "good" if found["state"] == "passed" else "bad"
        first = [cell(name, small=CHECKS[name].question), cell(found["state"], tone), cell(f"{found['seconds']:.0f} s")]
        rows.append(row([*first, cell("")], "rule"))
        rows += [row([cell(""), cell(key), cell(_number(value)), cell("")]) for key, value in _flat(found)]
    headline = f"{len(passed)} of {len(CHECKS)} checks passed"
    return page(
        "The first hour on a GPU",
        callout(headline, [*others, *rest], "good" if len(passed) == len(CHECKS) else "bad"),
        pairs({key: str(value) for key, value in machine.items()}),
        note("Sizes are so small that figures mean nothing.") if report["settings"]["small"] else "",
        section("Checks", table(["check", "figure", "value", ""], rows)),
    )


def _flat(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(found.get("figures", {}).items())


def _number(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
