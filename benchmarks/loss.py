"""Does the chunked loss beat the naive formula, eager and compiled, in time and in peak memory?

Two heads and a teacher, M = 2048 rows, D = 128, forward and backward. Each case runs in a process of its own; peak
memory is what the resident set grew by during one run, gradients included.

    python benchmarks/loss.py --out loss.json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from mtmh.modules import Head, Teacher, contrastive_losses
from torch import Tensor
from torch.nn import functional

HEADS = (Head("engagement"), Head("relevance", relevance_weight=0.5))
TEMPERATURE = 0.07
METHODS = ("naive", "compiled", "chunked")


def naive_loss(embeddings: list[list[Tensor]], teacher: Teacher) -> Tensor:
    """The formulas as one writes them first: all logits held, autograd does the rest."""

    def log_softmax(trigger: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
        similarity = torch.cat([(trigger * positive).sum(dim=1, keepdim=True), trigger @ negative.T], dim=1)
        return functional.log_softmax(similarity / temperature, dim=1)

    log_q = log_softmax(teacher.trigger, teacher.positive, teacher.negative, teacher.temperature)
    total = torch.zeros(())
    for head, trigger, positive, negative in zip(HEADS, *embeddings, strict=True):
        log_p = log_softmax(trigger, positive, negative, TEMPERATURE)
        total = total - head.engagement_weight * log_p[:, 0].sum()
        if head.relevance_weight > 0.0:
            divergence = functional.kl_div(log_p, log_q, reduction="sum", log_target=True)
            total = total + head.relevance_weight * divergence
    return total


def chunked_loss(embeddings: list[list[Tensor]], teacher: Teacher) -> Tensor:
    """The library's path."""
    total: Tensor = contrastive_losses(*embeddings, HEADS, temperature=TEMPERATURE, teacher=teacher).total
    return total


def make_inputs(num_rows: int, num_negatives: int, width: int) -> tuple[list[list[Tensor]], Teacher]:
    """Random unit-length embeddings: trigger, positive and negative for each head, and a teacher's."""
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int) -> Tensor:
        return functional.normalize(torch.randn(rows, width, generator=generator), dim=1)

    sizes = (num_rows, num_rows, num_negatives)
    embeddings = [[unit(rows).requires_grad_() for _ in HEADS] for rows in sizes]
    return embeddings, Teacher(*(unit(rows) for rows in sizes), temperature=TEMPERATURE)


def measure(method: str, num_rows: int, num_negatives: int, width: int, repeats: int) -> dict[str, Any]:
    """Times one method in this process and reads its peak memory."""
    loss: Callable[[list[list[Tensor]], Teacher], Tensor] = {
        "naive": naive_loss,
        "compiled": torch.compile(naive_loss),
        "chunked": chunked_loss,
    }[method]
    embeddings, teacher = make_inputs(num_rows, num_negatives, width)

    def run() -> float:
        for tensor in chain.from_iterable(embeddings):
            tensor.grad = None
        start = time.perf_counter()
        total = loss(embeddings, teacher)
        total.backward()  # type: ignore[no-untyped-call]
        elapsed = time.perf_counter() - start
        value.append(float(total.detach()))
        return elapsed

    value: list[float] = []
    first = run()
    for tensor in chain.from_iterable(embeddings):
        tensor.grad = None
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak of the resident set
    run()
    peak = _status_kib("VmHWM")
    seconds = [run() for _ in range(repeats)]
    return {
        "loss": value[-1],
        "first_s": first,
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "peak_extra_mib": (peak - before) / 1024,
    }


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Runs all cases, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--negatives", type=int, nargs="+", default=[8192, 65_536])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--method", choices=METHODS, help="measure this one alone, here, and print JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.method:
        print(json.dumps(measure(args.method, args.rows, args.negatives[0], args.width, args.repeats)))
        return

    results = []
    print(f"M = {args.rows}, D = {args.width}, {len(HEADS)} heads and teacher, {args.threads} threads")
    print(f"{'L':>8}  {'method':<9}{'median s':>10}{'min - max s':>18}{'x naive':>9}{'peak MiB':>10}{'of naive':>10}")
    for negatives in args.negatives:
        naive: dict[str, Any] = {}
        for method in METHODS:
            if method == "compiled" and not (shutil.which("g++") or shutil.which("clang++")):
                print(f"{negatives:>8}  {method:<9}  not available: torch.compile needs a C++ compiler")
                continue
            options = ["--rows", args.rows, "--width", args.width, "--threads", args.threads, "--repeats", args.repeats]
            command = [sys.executable, __file__, "--method", method, "--negatives", negatives, *options]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{method}, L = {negatives}, failed:\n{done.stderr}")
            row = json.loads(done.stdout.splitlines()[-1])
            naive = naive or row
            results.append({"negatives": negatives, "method": method, **row})
            print(
                f"{negatives:>8}  {method:<9}{row['median_s']:>10.3f}{row['min_s']:>9.3f} -{row['max_s']:>7.3f}"
                f"{row['median_s'] / naive['median_s']:>9.2f}{row['peak_extra_mib']:>10.0f}"
                f"{row['peak_extra_mib'] / naive['peak_extra_mib']:>10.3f}",
                flush=True,
            )
    if args.out:
        machine = {"cpu": _cpu_name(), "threads": args.threads, "torch": torch.__version__}
        settings = {"rows": args.rows, "width": args.width, "heads": len(HEADS), "repeats": args.repeats}
        report = {"command": " ".join(sys.argv), "machine": machine, "settings": settings, "results": results}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
