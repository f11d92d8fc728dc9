"""The machine that is measured: its description, its free memory, and the bandwidths no lookup can pass."""

from __future__ import annotations

import gc
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.lookup.cases import Case
from benchmarks.lookup.timing import Timing, measure

COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
GATHER_ROWS_AT_ONCE = 2048  # on CPU the gathered rows land in a buffer of so many rows, which stays in the cache
LONG_BAG = 320  # rows summed into one in the pooled gather: what it writes does not count beside what it reads


def describe(device: torch.device, threads: int) -> dict[str, Any]:
    """Processor, memory, accelerator, versions and threads: what makes two runs comparable."""
    found = {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "last_level_cache_mb": round(cache_bytes(device) / 2**20, 1),
        "device": device.type,
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "unset"),
    }
    for distribution in ("torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu"):
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[distribution] = "absent"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
        }
    return found


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def cache_bytes(device: torch.device) -> int:
    """Size of the last-level cache; 32 MiB where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [
        int(path.read_text().strip().removesuffix("K")) * 1024
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if path.read_text().strip().endswith("K")
    ]
    return max(sizes, default=32 * 2**20)


def free_bytes(device: torch.device) -> int:
    """Memory a run may take: half of what is free, since others may share the machine."""
    gc.collect()  # the tables of the case before
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) // 2
    return int(psutil.virtual_memory().available) // 2


def cpu_seconds() -> tuple[float, float]:
    """CPU seconds all processes of the machine have used, and those of this one with its ended children."""
    times = psutil.cpu_times()._asdict()
    idle = ("idle", "iowait", "guest", "guest_nice")  # guest time is counted in user time already
    own = os.times()
    everybody = sum(seconds for name, seconds in times.items() if name not in idle)
    return everybody, own.user + own.system + own.children_user + own.children_system


@dataclass(frozen=True)
class Bandwidth:
    """A measured rate in bytes per second: of the fastest sample, of the median one, and how it was measured.

    The fastest stands as the limit: what slows a sample down is somebody else's work, not the memory.
    """

    best: float
    median: float
    method: str

    @classmethod
    def of(cls, moved: int, timing: Timing, method: str) -> Bandwidth:
        """Bytes moved in a call over its time."""
        return cls(moved / timing.fastest, moved / timing.median, method)

    def times(self, devices: int) -> Bandwidth:
        """The bandwidth of several such devices together."""
        return Bandwidth(self.best * devices, self.median * devices, self.method)


def copy_bandwidth(device: torch.device, seconds: float, samples: int) -> Bandwidth:
    """Sequential copy of a buffer much larger than the caches; each byte counts twice, read and written."""
    count = COPY_BYTES[device.type]
    source = torch.ones(count // 4, device=device)
    target = torch.empty_like(source)
    timing = measure(lambda _: target.copy_(source), device, seconds, samples)
    return Bandwidth.of(2 * count, timing, f"Tensor.copy_ of {count / 2**20:.0f} MiB, bytes read + written")


def gather_bandwidth(case: Case, sets: list[Tensor], device: torch.device, seconds: float, samples: int) -> Bandwidth:
    """Random reads of rows of the case's width from a working set of its size, at the case's own indices.

    Two gathers are timed and the faster is the limit, since no single one is fastest for every width and device:

    - ``index_select``. On CPU 2048 rows at a time go to one small buffer that stays in the cache, so only the rows read
      count; on CUDA all rows go to one buffer in memory and each byte counts twice, read and written.
    - ``embedding_bag`` over bags of 320 rows, which reads rows and keeps their sum in registers.

    Args:
        case: Rows, width, type and threads. All tables are gathered as one table of ``tables * rows`` rows.
        sets: Index sets ``[lookups]`` int64 of the case.
        device: Where to measure.
        seconds: Time to spend on each gather.
        samples: Least number of samples.
    """
    width = case.row_bytes // 4  # rows move as float32 whatever they hold
    table = torch.empty(case.tables * case.rows, width, device=device).uniform_(-1, 1)
    shift = torch.arange(case.tables).repeat_interleave(case.batch * case.pooling) * case.rows
    indices = [(rows + shift).to(device) for rows in sets]
    read = case.lookups * case.row_bytes
    at_once = GATHER_ROWS_AT_ONCE if device.type == "cpu" else case.lookups
    buffer = torch.empty(min(at_once, case.lookups), width, device=device)
    parts = [[rows[begin : begin + at_once] for begin in range(0, len(rows), at_once)] for rows in indices]
    offsets = torch.arange(0, case.lookups, LONG_BAG, device=device)

    def select(turn: int) -> None:
        for part in parts[turn % len(parts)]:
            torch.index_select(table, 0, part, out=buffer if len(part) == len(buffer) else buffer[: len(part)])

    def pool(turn: int) -> None:
        F.embedding_bag(indices[turn % len(indices)], table, offsets, mode="sum")

    with torch.no_grad():
        candidates = []
        for name, gather, counted in (
            ("index_select", select, read if device.type == "cpu" else 2 * read),
            ("embedding_bag", pool, read),
        ):
            timing = measure(gather, device, seconds, samples)
            candidates.append(Bandwidth.of(counted, timing, name))
    return max(candidates, key=lambda bandwidth: bandwidth.best)
