"""A store for the ranks of one start of a job, in which nothing of an earlier start is found.

When a worker dies, torchrun starts all of them again, but its store lives on, with the addresses that the dead ranks
left there (https://github.com/pytorch/pytorch/issues/135712; PyTorch takes the store to be a new one). A rank that is
quicker than the others to look would connect to a process that is gone, and the job would stand still or fail. The
number of restarts in the environment cannot tell the starts apart: each host counts its own. So the ranks agree on a
name first, and meet below it.

With ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` torchrun has rank 0 open a store of its own at each start, on the name
that its host gives itself and a port that was free a moment before. Other hosts may know it by another name, and a
job that is started by plain torchrun would be without.
"""

from __future__ import annotations

import secrets
import time
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import rendezvous

POLL_SECONDS = 0.02


def meet(timeout: timedelta = default_pg_timeout) -> tuple[Store, int, int]:
    """Meets the other ranks that the launcher started.

    Args:
        timeout: how long to wait for the last of them.

    Returns:
        The store for ``init_process_group``, this rank, and the number of ranks; the latter from the environment.

    Raises:
        TimeoutError: not all ranks came; the message names them.
    """
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    name = agree(PrefixStore("mtmh", store), rank, world_size, timeout)
    return PrefixStore(f"mtmh/{name}", store), rank, world_size


def agree(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that these processes alone know, whatever others left in the store.

    Each rank makes up a word and shows it under its number; rank 0 answers under the word itself, where no earlier
    process can have found or left anything. What rank 0 reads may be the word of a dead process, so it goes on
    looking until every rank has confirmed.

    Raises:
        TimeoutError: not all ranks came.
    """
    word = secrets.token_hex(8)
    if rank:
        store.set(f"word/{rank}", word)
        try:
            store.wait([f"answer/{word}"], timeout)
        except dist.DistStoreError:
            raise TimeoutError(f"rank {rank}: rank 0 did not come within {timeout}") from None
        name = store.get(f"answer/{word}").decode()
        store.set(f"came/{name}/{rank}", "")
        return name
    deadline = time.monotonic() + timeout.total_seconds()
    answered: set[str] = set()
    missing = set(range(1, world_size))
    while missing:
        for other in sorted(missing):
            if store.check([f"came/{word}/{other}"]):
                missing.remove(other)
            elif store.check([f"word/{other}"]):
                theirs = store.get(f"word/{other}").decode()
                if theirs not in answered:
                    store.set(f"answer/{theirs}", word)
                    answered.add(theirs)
        if missing and time.monotonic() > deadline:
            raise TimeoutError(f"ranks {sorted(missing)} of {world_size} did not come within {timeout}")
        time.sleep(POLL_SECONDS if missing else 0.0)
    return word
