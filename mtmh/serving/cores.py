"""The CPU cores that a process may use, and how many of them one thread's computing takes."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import faiss
import torch

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_own = threading.local()


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


def compute_with(threads: int, at_once: int = 1) -> None:
    """Lets faiss and torch, where this thread calls them, spread their work over so many threads.

    Args:
        threads: of this thread's work.
        at_once: threads like this one that compute at the same time, itself among them; see `busy_threads`.

    OpenMP keeps the number for each calling thread. Torch sets its own when a thread uses it for the first time, and in
    some builds shares it with faiss, so both are told.
    """
    _own.at_once = at_once
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)


def busy_threads() -> int:
    """Threads that this thread and those like it keep busy, as `compute_with` was told."""
    return getattr(_own, "at_once", 1) * int(faiss.omp_get_max_threads())


def _quota(path: Path) -> float:
    """Cores; infinite without a quota."""
    try:
        quota, period = path.read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf
