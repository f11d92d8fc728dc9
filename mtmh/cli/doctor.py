"""``mtmh doctor``: checks that the installed packages belong together and compute.

Version mismatch between torch, fbgemm and torchrec is what stops most newcomers to TorchRec; every check here ends
in one line of cure.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

# Minor versions that are released and tested together: torch -> (fbgemm, torchrec).
MATRIX = {"2.11": ("1.6", "1.6"), "2.12": ("1.7", "1.7"), "2.13": ("1.8", "1.8")}
PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "faiss-cpu", "torchx", "transformers")
REINSTALL = "rm -rf .venv && make doctor"
# Compute capabilities whose code FBGEMM's CUDA builds hold: 8.0, 9.0, 10.0, which later minor ones run too. There is
# no PTX for others.
KERNELS = (8, 9, 10)
NO_KERNELS = (
    "FBGEMM's CUDA builds have no kernels for it: they are for compute capability 8, 9 and 10 (A100, H100, B200)"
)


@dataclass(frozen=True)
class Check:
    """One line of the report; ``cure`` is empty when all is well."""

    subject: str
    state: str
    cure: str = ""


def examine_installation() -> list[Check]:
    """Runs every check; none raises."""
    checks: list[Callable[[], Iterator[Check]]] = [
        _python,
        _versions,
        _matrix,
        _fbgemm,
        _faiss,
        _devices,
        _backends,
    ]
    results: list[Check] = []
    for check in checks:
        try:
            results += check()
        except Exception as error:  # a broken installation fails in ways that cannot be listed; the report goes on
            results.append(Check(check.__name__.strip("_"), f"{type(error).__name__}: {error}", REINSTALL))
    return results


def report(results: list[Check], console: Console) -> bool:
    """Prints the results and the cures.

    Returns:
        Whether all is well.
    """
    table = Table(title="mtmh doctor", title_justify="left")
    for column in ("what", "found", ""):
        table.add_column(column, overflow="fold")
    for result in results:
        table.add_row(result.subject, result.state, "[red]wrong[/red]" if result.cure else "[green]ok[/green]")
    console.print(table)
    sick = [result for result in results if result.cure]
    for result in sick:
        console.print(f"[red]{result.subject}[/red]: {result.cure}", soft_wrap=True)
    if not sick:
        console.print("All is well.")
    return not sick


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _python() -> Iterator[Check]:
    found = platform.python_version()
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Check("Python", found, "" if fits else "use Python 3.11, 3.12 or 3.13: make demo PYTHON=python3.12")


def _versions() -> Iterator[Check]:
    for package in PACKAGES:
        found = _installed(package)
        if found is not None:
            yield Check(package, found)
        elif not package.startswith("fbgemm"):
            yield Check(package, "not installed", f"install the pinned set: {REINSTALL}")


def _matrix() -> Iterator[Check]:
    """Checks that torch, fbgemm and torchrec come from one release."""
    cpu, cuda = _installed("fbgemm-gpu-cpu"), _installed("fbgemm-gpu")
    is_stand_in = cuda is not None and "shim" in cuda
    if cpu and cuda and not is_stand_in:
        cure = f"both builds own the folder fbgemm_gpu and break each other; install one: {REINSTALL}"
        yield Check("fbgemm builds", f"fbgemm-gpu {cuda} over fbgemm-gpu-cpu {cpu}", cure)
        return
    torch, fbgemm, torchrec = _installed("torch"), cpu or cuda, _installed("torchrec")
    if torch is None or torchrec is None or fbgemm is None:
        missing = [n for n, v in (("torch", torch), ("fbgemm", fbgemm), ("torchrec", torchrec)) if v is None]
        yield Check("version matrix", f"{', '.join(missing)} not installed", f"install the pinned set: {REINSTALL}")
        return
    expected = MATRIX.get(_minor(torch))
    state = f"torch {_minor(torch)}, fbgemm {_minor(fbgemm)}, torchrec {_minor(torchrec)}"
    if expected is None:
        yield Check("version matrix", state, f"torch must be one of {', '.join(MATRIX)}: {REINSTALL}")
    elif expected != (_minor(fbgemm), _minor(torchrec)):
        cure = f"torch {_minor(torch)} goes with fbgemm {expected[0]} and torchrec {expected[1]}: {REINSTALL}"
        yield Check("version matrix", state, cure)
    else:
        yield Check("version matrix", state)


def _minor(text: str) -> str:
    return ".".join(text.split(".")[:2])


def _fbgemm() -> Iterator[Check]:
    """FBGEMM's operators load and pool a known table to known numbers, forward and backward."""
    import torch
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

    table = EmbeddingBagConfig(name="t", num_embeddings=4, embedding_dim=4, feature_names=["f"])
    bags = EmbeddingBagCollection(tables=[table])
    with torch.no_grad():
        bags.embedding_bags["t"].weight.copy_(torch.arange(16.0).view(4, 4))
    ids = KeyedJaggedTensor(keys=["f"], values=torch.tensor([0, 3]), lengths=torch.tensor([2]))
    pooled = bags(ids).values()
    pooled.sum().backward()
    ok = torch.equal(pooled.detach(), torch.tensor([[12.0, 14.0, 16.0, 18.0]]))
    yield Check("embedding bag", "computes" if ok else f"wrong sum {pooled.tolist()}", "" if ok else REINSTALL)

    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(4, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_SGD,
        learning_rate=1.0,
        device=torch.device("cpu"),
    )
    weight = kernel.split_embedding_weights()[0]
    weight.fill_(1.0)
    kernel(torch.tensor([0, 3]), torch.tensor([0, 2])).sum().backward()
    stepped = weight[:, 0].tolist()
    ok = stepped == [0.0, 1.0, 1.0, 0.0]
    yield Check("fbgemm kernel", "computes and updates" if ok else f"wrong rows {stepped}", "" if ok else REINSTALL)


def _faiss() -> Iterator[Check]:
    import faiss
    import numpy as np

    index = faiss.IndexFlatIP(4)
    index.add(np.eye(4, dtype=np.float32))
    nearest = int(index.search(np.eye(4, dtype=np.float32)[2:3], 1)[1][0, 0])
    ok = nearest == 2
    yield Check("faiss search", "computes" if ok else f"wrong row {nearest}", "" if ok else REINSTALL)


def _devices() -> Iterator[Check]:
    import torch

    yield Check("CPU", f"{torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        built = "with CUDA, no usable GPU" if torch.version.cuda else "CPU build"
        yield Check("CUDA", f"not used ({built})")
        return
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        capability = f"{properties.major}.{properties.minor}"
        state = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute capability {capability}"
        yield Check(f"cuda:{i}", state, "" if properties.major in KERNELS else NO_KERNELS)
    total = float((torch.ones(8, device="cuda") * 2).sum())
    yield Check("CUDA", f"CUDA {torch.version.cuda}", "" if total == 16.0 else "the driver does not fit: update it")


def _backends() -> Iterator[Check]:
    """Each process-group backend of this build reduces over a group of one."""
    import torch
    import torch.distributed as dist

    wanted = {"gloo": "cpu", **({"nccl": "cuda"} if torch.cuda.is_available() and dist.is_nccl_available() else {})}
    for backend, device in wanted.items():
        with tempfile.TemporaryDirectory() as folder:
            dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
            try:
                value = torch.ones(1, device=device)
                dist.all_reduce(value)
                ok = float(value) == 1.0
            finally:
                dist.destroy_process_group()
        yield Check(backend, "reduces" if ok else "wrong result", "" if ok else REINSTALL)
