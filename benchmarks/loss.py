"""Time and peak memory of the library's losses, beside the naive formula, eager and compiled.

Two heads and a teacher, M = 2048 rows, D = 128, forward and backward. ``chunked`` is the PyTorch path, ``triton`` the
one for GPUs. Each case runs in a process of its own. Peak memory is what one run adds, gradients included: on a CPU to
the resident set, on a GPU to PyTorch's allocator.

    python benchmarks/loss.py --out loss.json
    python benchmarks/loss.py --device cuda --precision high --out loss-cuda.json
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
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from mtmh.modules import Head, TeacherEmbeddings, contrastive_losses
from torch import Tensor
from torch.nn import functional

from benchmarks.compare import made_by

HEADS = (Head("engagement"), Head("relevance", relevance_weight=0.5))
TEMPERATURE = 0.07
METHODS = ("naive", "compiled", "chunked", "triton")  # the last on GPUs only


def naive_loss(embeddings: list[list[Tensor]], teacher: TeacherEmbeddings) -> Tensor:
    """The formulas as one writes them first: all logits held, autograd does the rest."""

    def log_softmax(trigger: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
        similarity = torch.cat([(trigger * positive).sum(dim=1, keepdim=True), trigger @ negative.T], dim=1)
        return functional.log_softmax(similarity / temperature, dim=1)

    log_q = log_softmax(teacher.trigger, teacher.positive, teacher.negative, teacher.temperature)
    total = torch.zeros((), device=teacher.negative.device)
    for head, trigger, positive, negative in zip(HEADS, *embeddings, strict=True):
        log_p = log_softmax(trigger, positive, negative, TEMPERATURE)
        total = total - head.engagement_weight * log_p[:, 0].sum()
        if head.relevance_weight > 0.0:
            divergence = functional.kl_div(log_p, log_q, reduction="sum", log_target=True)
            total = total + head.relevance_weight * divergence
    return total


def library_loss(
    embeddings: list[list[Tensor]], teacher: TeacherEmbeddings, kernel: Literal["torch", "triton"] = "torch"
) -> Tensor:
    """One of the library's paths."""
    trigger, positive, negative = embeddings
    losses = contrastive_losses(
        trigger, positive, negative, HEADS, temperature=TEMPERATURE, teacher=teacher, kernel=kernel
    )
    total: Tensor = losses.total
    return total


def make_inputs(
    num_rows: int, num_negatives: int, width: int, device: torch.device
) -> tuple[list[list[Tensor]], TeacherEmbeddings]:
    """Random unit-length embeddings: trigger, positive and negative for each head, and a teacher's."""
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int) -> Tensor:
        return functional.normalize(torch.randn(rows, width, generator=generator), dim=1).to(device)

    sizes = (num_rows, num_rows, num_negatives)
    embeddings = [[unit(rows).requires_grad_() for _ in HEADS] for rows in sizes]
    trigger, positive, negative = (unit(rows) for rows in sizes)
    return embeddings, TeacherEmbeddings(trigger, positive, negative, temperature=TEMPERATURE)


def measure(
    method: str, num_rows: int, num_negatives: int, width: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Times one method in this process and reads its peak memory."""
    on_gpu = device.type == "cuda"
    losses: dict[str, Callable[[list[list[Tensor]], TeacherEmbeddings], Tensor]] = {
        "naive": naive_loss,
        "compiled": torch.compile(naive_loss),
        "chunked": library_loss,
        "triton": partial(library_loss, kernel="triton"),
    }
    loss = losses[method]
    embeddings, teacher = make_inputs(num_rows, num_negatives, width, device)

    def run() -> float:
        for tensor in chain.from_iterable(embeddings):
            tensor.grad = None
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        total = loss(embeddings, teacher)
        total.backward()
        if on_gpu:
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
        value.append(float(total.detach()))
        return elapsed

    value: list[float] = []
    first = run()
    for tensor in chain.from_iterable(embeddings):
        tensor.grad = None
    peak = _peak_on_gpu(run) if on_gpu else _peak_on_cpu(run)
    seconds = [run() for _ in range(repeats)]
    return {
        "loss": value[-1],
        "first_s": first,
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "peak_extra_mib": peak / 2**20,
    }


def _peak_on_gpu(run: Callable[[], float]) -> int:
    """Bytes that PyTorch's allocator had lent at most, above what it had before."""
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(run: Callable[[], float]) -> int:
    """Bytes that the resident set grew by at most."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak of the resident set
    run()
    return (_status_kib("VmHWM") - before) * 1024


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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("highest", "high"), default="highest", help="of float32 products")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--method", choices=METHODS, help="measure this one alone, here, and print JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(args.precision)
    device = torch.device(args.device)
    if args.method:
        print(json.dumps(measure(args.method, args.rows, args.negatives[0], args.width, args.repeats, device)))
        return

    hardware = torch.cuda.get_device_name() if args.device == "cuda" else _cpu_name()
    machine = {"device": hardware, "threads": args.threads, "torch": torch.__version__}
    settings = {name: getattr(args, name) for name in ("rows", "width", "repeats", "precision")} | {"heads": len(HEADS)}
    report: dict[str, Any] = {"command": made_by(), "machine": machine, "settings": settings, "results": []}
    print(f"M = {args.rows}, D = {args.width}, {len(HEADS)} heads and teacher, {args.precision} precision, {hardware}")
    print(f"{'L':>8}  {'method':<9}{'median s':>10}{'min - max s':>18}{'x naive':>9}{'peak MiB':>10}{'of naive':>10}")
    for negatives in args.negatives:
        naive: dict[str, Any] = {}
        for method in METHODS:
            if method == "triton" and args.device == "cpu":
                continue
            if method == "compiled" and not (shutil.which("g++") or shutil.which("clang++")):
                print(f"{negatives:>8}  {method:<9}  not available: torch.compile needs a C++ compiler")
                continue
            options = []
            for name in ("rows", "width", "threads", "repeats", "device", "precision"):
                options += [f"--{name}", getattr(args, name)]
            command = [sys.executable, "-m", "benchmarks.loss", "--method", method, "--negatives", negatives, *options]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{method}, L = {negatives}, failed:\n{done.stderr}")
            row = json.loads(done.stdout.splitlines()[-1])
            naive = naive or row
            report["results"].append({"negatives": negatives, "method": method, **row})
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(report, indent=1) + "\n")
            print(
                f"{negatives:>8}  {method:<9}{row['median_s']:>10.3f}{row['min_s']:>9.3f} -{row['max_s']:>7.3f}"
                f"{row['median_s'] / naive['median_s']:>9.2f}{row['peak_extra_mib']:>10.0f}"
                f"{row['peak_extra_mib'] / naive['peak_extra_mib']:>10.3f}",
                flush=True,
            )


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
