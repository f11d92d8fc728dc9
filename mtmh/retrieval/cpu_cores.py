"""The number of CPU cores that a process may use, within its container's quota, and their division among searches.

Of the libraries at hand psutil counts by affinity alone, and joblib reads the quota of the root group only, where a job
of Slurm or a pod's inner container has its own further down.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


class Shares:
    """Hands out a process's cores to what runs at the same time.

    Args:
        cores: how many there are.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._taken = 0
        self._lock = threading.Lock()

    @contextmanager
    def share(self, parts: int, cores_each: int) -> Iterator[bool]:
        """Takes cores for ``parts`` pieces of work of ``cores_each`` each; yields whether they may run side by side."""
        with self._lock:
            in_parallel = self._taken + parts * cores_each <= self._cores
            taken = (parts if in_parallel else 1) * cores_each
            self._taken += taken
        try:
            yield in_parallel
        finally:
            with self._lock:
                self._taken -= taken


def usable_cores() -> int:
    """Cores that the scheduler gives this process: by its affinity, and by the quota of its container."""
    return max(1, min(len(os.sched_getaffinity(0)), cgroup_cores(_CGROUPS, _MEMBERSHIP)))


def cgroup_cores(root: Path, membership: Path) -> int:
    """Whole cores within the CPU quota of cgroups (version 2), the least one from a process's group up to the root.

    Args:
        root: where the groups are mounted.
        membership: ``/proc/PID/cgroup``.

    Returns:
        At least 1; a very large number where no quota is set or none can be read, as with version 1.
    """
    try:
        own = [line[3:] for line in membership.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        own = []
    folder = root / own[0].strip("/") if own else root
    quotas = [_quota(at / "cpu.max") for at in (folder, *folder.parents) if at.is_relative_to(root)]
    return max(1, math.floor(min([*quotas, 2.0**31])))


def compute_with(threads: int) -> None:
    """Lets faiss and torch, where this thread calls them, spread their work over so many threads.

    OpenMP keeps the number for each calling thread. Torch sets its own when a thread uses it for the first time, and in
    some builds shares it with faiss, so both are told; where torch is not loaded yet, what loads it tells it the number
    of faiss (`mtmh.tower.fresh`).
    """
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)


def _quota(path: Path) -> float:
    """Cores; infinite without a quota."""
    try:
        quota, period = path.read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf
