"""The checks of the first hour on a GPU: each returns figures, and raises if something is wrong."""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from mtmh.modules import HashIdRows, IdTable, build_managed_ebc, contrastive_losses
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor

from benchmarks.loss import HEADS, TEMPERATURE, make_inputs
from mtmh.artifacts import write_atomically
from mtmh.distributed.finite import NonFiniteStateError, check_finite
from mtmh.distributed.ranks import join_ranks
from mtmh.training.checkpoint import Checkpoints, RunRecord

Figures = dict[str, float | str]
Products = Literal["float32", "bfloat16"]
Kernel = Literal["torch", "triton"]
# Setting of ``training.matmul_precision`` -> PyTorch's, and the loss's products.
PRECISIONS: dict[str, tuple[str, Products]] = {
    "highest": ("highest", "float32"),
    "high": ("high", "float32"),
    "bf16": ("high", "bfloat16"),
}
# Relative errors of gradients that roundings explain, with room: TF32 keeps 10 bits of a factor, bf16 7.
MOST_ERROR = {"highest": 1e-4, "high": 5e-3, "bf16": 3e-2}


@dataclass(frozen=True)
class Run:
    """What a check is given: where to compute, whether for figures or for the harness alone, and a folder."""

    device: torch.device
    small: bool
    folder: Path

    @property
    def on_gpu(self) -> bool:
        """True on CUDA."""
        return self.device.type == "cuda"

    def wait(self) -> float:
        """The time, when the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def milliseconds(self, work: Callable[[], object], repeats: int = 5) -> float:
        """Median of a call, after one that is not counted."""
        work()
        times = []
        for _ in range(1 if self.small else repeats):
            start = self.wait()
            work()
            times.append(1000 * (self.wait() - start))
        return statistics.median(times)

    def verb(self, *words: str) -> float:
        """Seconds of one verb of mtmh, in a process of its own."""
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "mtmh.cli", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"mtmh {' '.join(words)}:\n{done.stdout[-1500:]}\n{done.stderr[-2500:]}"
        return time.perf_counter() - start


@dataclass(frozen=True)
class Check:
    """One check, what it answers, and the seconds that it may need."""

    run: Callable[[Run], Figures]
    question: str
    seconds: float


def gradients(
    inputs: tuple[list[list[Tensor]], Any], kernel: Kernel, precision: str, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of the product's pass over `make_inputs`, under a setting of ``matmul_precision``."""
    groups, teacher = inputs
    leaves = [[tensor.detach().to(dtype).requires_grad_() for tensor in group] for group in groups]
    matmul, products = PRECISIONS[precision]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(matmul)
    try:
        trigger, positive, negative = leaves
        loss = contrastive_losses(
            trigger,
            positive,
            negative,
            HEADS,
            temperature=TEMPERATURE,
            teacher=teacher,
            kernel=kernel,
            products=products,
        ).total
        found = torch.autograd.grad(loss, list(itertools.chain.from_iterable(leaves)))
    finally:
        torch.set_float32_matmul_precision(before)
    return loss.detach(), list(found)


def paths_of(run: Run) -> list[tuple[Kernel, str]]:
    """The passes of the loss that there are here, and the precisions that each has."""
    paths: tuple[Kernel, ...] = ("torch", "triton") if run.on_gpu else ("torch",)
    return list(itertools.product(paths, PRECISIONS))


def kernels(run: Run) -> Figures:
    """Losses and gradients of each path and precision against float64."""
    inputs = make_inputs(32 if run.small else 512, 501 if run.small else 8191, 128, run.device)
    exact, wanted = gradients(inputs, "torch", "highest", torch.float64)
    figures: Figures = {}
    for kernel, precision in paths_of(run):
        loss, found = gradients(inputs, kernel, precision, torch.float32)
        worst = max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))
        figures[f"{kernel}, {precision}: relative error of the loss"] = abs(float(loss.double() / exact) - 1)
        figures[f"{kernel}, {precision}: largest relative error of a gradient"] = worst
        assert worst < MOST_ERROR[precision], figures
    return figures


def precision(run: Run) -> Figures:
    """Time of the loss under each setting of ``matmul_precision``, and on a GPU of both paths."""
    figures: Figures = {}
    for rows, negatives in ((64, 1000),) if run.small else ((2048, 8191), (2048, 65_535), (2048, 147_455)):
        inputs = make_inputs(rows, negatives, 128, run.device)
        # Forward and backward of two heads, and the forward of the teacher: 2 M L D each.
        flops = 2 * rows * negatives * 128 * (2 * 3 + 1)
        for kernel, name in paths_of(run):
            spent = run.milliseconds(partial(gradients, inputs, kernel, name, torch.float32))
            figures[f"{rows} x {negatives}, {kernel}, {name}: ms"] = spent
            figures[f"{rows} x {negatives}, {kernel}, {name}: TFLOP/s"] = flops / spent / 1e9
    return figures


def id_tables(run: Run) -> Figures:
    """Promises of id tables with every id in eight copies, and the speed of the map."""
    rows, new = (960, 200) if run.small else (4_800_000, 12_288)
    managed = build_managed_ebc({"item_id": IdTable(rows, 48, eviction="lru")}, {"item_id": 4}, device=run.device)
    (table,) = (module for module in managed.modules() if isinstance(module, HashIdRows))
    generator = torch.Generator().manual_seed(0)

    def step(ids: Tensor) -> Tensor:
        """Row of each id, -1 for none."""
        feature = JaggedTensor(ids, lengths=torch.ones(len(ids), dtype=torch.int64, device=run.device))
        out = table({"item_id": feature})["item_id"]
        table.evict()
        table.now += 1
        found = torch.full_like(ids, -1)
        found[out.lengths() > 0] = out.values()
        return found

    def draw(count: int) -> Tensor:
        return torch.randint(0, 2**62, (count,), generator=generator).to(run.device)

    known = draw(new)
    own = step(known)
    for _ in range(10):
        batch = torch.cat([known[own >= 0], draw(new)])
        before = own[own >= 0]
        found = step(batch.repeat(8)[torch.randperm(8 * len(batch), generator=generator).to(run.device)])
        again = step(batch)
        assert torch.equal(again[: len(before)], before), "an id that was seen in the step lost its row"
        assert len(found.unique()) <= len(batch) + 1
        taken = table.identities[table.identities >= 0]
        assert len(taken.unique()) == len(taken), "an id has two rows"
        held = again[again >= 0]
        assert len(held.unique()) == len(held), "two ids share a row"
    looked = run.milliseconds(lambda: step(known))
    inserted = run.milliseconds(lambda: step(draw(new)))
    return {"known ids a second": 1000 * new / looked, "new ids a second": 1000 * new / inserted}


def save(run: Run) -> Figures:
    """A save in the background: what it holds up, and that what it writes is what there was."""
    count = 1000 if run.small else 250_000_000
    state = {"model.table": torch.rand(count, device=run.device)}
    before = state["model.table"].clone()
    folder = run.folder / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    with join_ranks("cuda" if run.on_gpu else "cpu") as ranks:
        record = RunRecord({}, {}, {})
        start = run.wait()
        with Checkpoints(folder, record, ranks) as checkpoints:
            checkpoints.save(1, state, behind=True)
            held = run.wait() - start
            state["model.table"].zero_()
            checkpoints.wait()
            whole = run.wait() - start
            checkpoints.save(2, state, behind=False)
            checkpoints.restore(folder / "step-00000001", state)
    assert torch.equal(state["model.table"], before), "what was written is not what there was"
    shutil.rmtree(folder)
    return {"GB": 4e-9 * count, "training waits, s": held, "until written, s": whole}


def finite(run: Run) -> Figures:
    """The look at all weights finds one bad value among more than 2^31."""
    count = 1 << (16 if run.small or not run.on_gpu else 31)
    weights = torch.ones(count + 8, dtype=torch.bfloat16, device=run.device)
    with join_ranks("cuda" if run.on_gpu else "cpu"):
        spent = run.milliseconds(lambda: check_finite({"model.table": weights}, 1), repeats=3)
        weights[-2] = math.inf
        try:
            check_finite({"model.table": weights}, 1)
        except NonFiniteStateError:
            return {"values": len(weights), "ms": spent}
    raise AssertionError("an infinite weight was not found")


def losses(run: Run) -> Figures:
    """Twenty steps on this device and on the CPU; on a GPU once more with a cached table."""
    recipe, sizes = _recipe(run)
    ways = {"cpu": ["training.device=cpu"], run.device.type: [f"training.device={run.device.type}"]}
    if run.on_gpu:
        ways["cached"] = ["training.device=cuda", "sharding.uvm_caching={item_id: 0.2}"]
    by_way = {}
    run.verb("prepare", recipe, *sizes)
    run.verb("content", "embed", recipe, *sizes)
    for way, own in ways.items():
        name = f"steps-{way}"
        shutil.rmtree(run.folder / "demo" / name, ignore_errors=True)
        given = [f"name={name}", *own, "training.max_steps=20", "training.log_every=1"]
        run.verb("train", recipe, *sizes, *_set([*given, "training.matmul_precision=highest"]))
        lines = (run.folder / "demo" / name / "checkpoints" / "metrics.jsonl").read_text().splitlines()
        by_way[way] = [json.loads(line)["loss"] for line in lines]
    assert all(len(steps) == 20 for steps in by_way.values())
    figures: Figures = {}
    for way, steps in by_way.items():
        differences = [
            abs(here[head]["total"] / there[head]["total"] - 1)
            for here, there in zip(steps, by_way["cpu"], strict=True)
            for head in there
        ]
        figures[f"{way}: largest relative difference of a loss"] = max(differences)
        assert max(differences) < 1e-3, differences
    return figures


def demo(run: Run) -> Figures:
    """All stages of the demo; embeddings and training on this device."""
    recipe, sizes = _recipe(run)
    given = [*sizes, *_set([f"training.device={run.device.type}"])]
    stages = [["prepare"], ["content", "embed"], ["train"], ["embed"], ["train-preranker"], ["build-index"]]
    seconds: Figures = {" ".join(stage): run.verb(*stage, recipe, *given) for stage in stages}
    seconds["evaluate"] = run.verb("evaluate", recipe, *given)
    return {f"{stage}, s": spent for stage, spent in seconds.items()}


def trace(run: Run) -> Figures:
    """Five steps under the profiler: the operations that take longest."""
    recipe, sizes = _recipe(run)
    run.verb("prepare", recipe, *sizes)
    run.verb("content", "embed", recipe, *sizes)
    folder = run.folder / "demo" / "traced"
    shutil.rmtree(folder, ignore_errors=True)
    given = _set(["name=traced", f"training.device={run.device.type}", "training.max_steps=10"])
    run.verb("train", recipe, *sizes, *given, "--profile", "5")
    with gzip.open(folder / "checkpoints" / "trace" / "rank-0.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    kind = "kernel" if run.on_gpu else "cpu_op"
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == kind:
            spent[event["name"][:60]] += event["dur"]
    assert spent, f"no {kind} in the trace"
    return {f"{name}, ms a step": microseconds / 5000 for name, microseconds in spent.most_common(12)}


def lookup(run: Run) -> Figures:
    """The lookup suite."""
    out = run.folder / "lookup"
    preset = "smoke" if run.small or not run.on_gpu else "quick"
    words = ["--device", run.device.type, "--preset", preset, "--out", str(out), "--resume", "--minutes", "3"]
    _program("benchmarks.lookup", *words)
    result = json.loads((out / "lookup.json").read_text())
    missing = sum(result["missing"].values())
    return {"figures": len(result["rows"]), "still missing": missing, "report": str(out / "lookup.html")}


def encoder(run: Run) -> Figures:
    """The content encoder."""
    out = run.folder / "content-benchmark.json"
    full = ["--architectures", "xlmr-large_vit-h14", "--batch-size", "64", "--precision", "bf16", "--repeats", "3"]
    small = ["--architectures", "tiny", "--batch-size", "2", "--repeats", "1"]
    _program("benchmarks.content", *(small if run.small or not run.on_gpu else full), "--out", str(out))
    rows = json.loads(out.read_text())["rows"]
    return {f"{row['architecture']}, {row['content']}: items a second": row["items_per_second"] for row in rows}


def search(run: Run) -> Figures:
    """Exact search by one product and a sort of the best, in float32 and fp16, against float64."""
    items, queries, k = (5000, 64, 10) if run.small else (1_000_000, 1024, 100)
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(items, 128, generator=generator), dim=1).to(run.device)
    exact = (unit[:queries].double() @ unit.double().T).topk(k).indices
    figures: Figures = {}
    for name, vectors in (("float32", unit), ("float16", unit.half())):
        found = (vectors[:queries] @ vectors.T).topk(k).indices
        same = (found[:, :, None] == exact[:, None, :]).any(dim=2).double().mean()
        spent = run.milliseconds(lambda vectors=vectors: (vectors[:queries] @ vectors.T).topk(k))  # type: ignore[misc]
        figures[f"{name}: recall of {k}"] = float(same)
        figures[f"{name}: ms for {queries} queries"] = spent
        assert same > 0.98, figures
    return figures


CHECKS: dict[str, Check] = {
    "kernels": Check(kernels, "Are losses and gradients right on this device, on every path?", 40),
    "losses": Check(losses, "Do twenty steps here give the losses of the CPU?", 60),
    "precision": Check(precision, "What do TF32 and bf16 bring in the loss?", 40),
    "id tables": Check(id_tables, "Do id tables keep their promises under duplicates?", 30),
    "save": Check(save, "How long does training wait for a save in the background?", 40),
    "demo": Check(demo, "Do all stages run?", 150),
    "finite": Check(finite, "Is one bad weight found among more than 2^31?", 20),
    "lookup": Check(lookup, "How near to the memory's limit are embedding lookups?", 190),
    "trace": Check(trace, "Where does the time of a step go?", 60),
    "encoder": Check(encoder, "How many items a second does the content encoder embed?", 60),
    "search": Check(search, "What does exact search over a million items take?", 30),
}


def _recipe(run: Run) -> tuple[str, list[str]]:
    """Recipe and settings of the runs of this folder: simulated, without a teacher to train."""
    small = ["data.options={num_users: 300, num_items: 400, num_events: 12000}", "evaluation.num_users=40"]
    smaller = ["training.batch_size=384", "training.max_steps=10", "preranker.training.max_steps=10"]
    given = [f"paths.root={run.folder / 'demo'}", *([*small, *smaller] if run.small else [])]
    return "synthetic", _set([*given, "index.min_recall=0"])


def _set(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def _program(module: str, *words: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{module}:\n{done.stdout[-1500:]}\n{done.stderr[-2500:]}"


def _machine(device: torch.device) -> dict[str, str]:
    facts = {"PyTorch": torch.__version__, "CPU": f"{platform.machine()}, {os.cpu_count()} cores"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "GPU": f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB",
            "CUDA": str(torch.version.cuda),
        }
    return facts


def main(argv: list[str] | None = None) -> None:
    """Runs one check and writes its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(CHECKS))
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args(argv)
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    figures = CHECKS[args.name].run(Run(device, args.small, args.folder.resolve()))
    write_atomically(args.result, json.dumps({"figures": figures, "machine": _machine(device)}))


if __name__ == "__main__":
    main()
