"""Ranks that start in a fraction of a second: forked from a process that has imported everything once."""

from __future__ import annotations

import multiprocessing as mp
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mtmh.config import Config
from mtmh.training.trainer import train

PATIENCE = 120  # seconds, for a machine that is busy with other things


class Launcher:
    """Starts jobs as torchrun does: all of them find the same store, with what earlier ones left in it.

    The store goes when this object does. ``run`` is what a rank does with a recipe.
    """

    def __init__(
        self, world_size: int, *, ranks_per_host: int | None = None, run: Callable[[Config], Any] = train
    ) -> None:
        self.world_size = world_size
        self._run = run
        self._ranks_per_host = ranks_per_host or world_size
        self._store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        self._context = mp.get_context("forkserver")

    def start(self, config: Config) -> Job:
        """Begins or goes on with the training of ``config``."""
        log = config.paths.root / f"{config.name}.log"
        settings = config.model_dump_json()
        place = {
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self._ranks_per_host),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank % self._ranks_per_host)} for rank in range(self.world_size)]
        processes: list[BaseProcess] = [
            self._context.Process(target=run_rank, args=(self._run, settings, place | rank, log)) for rank in ranks
        ]
        for process in processes:
            process.start()
        return Job(processes, log)


class Job:
    """The processes of one start."""

    def __init__(self, ranks: list[BaseProcess], log: Path) -> None:
        self.ranks = ranks
        self._log = log

    def is_running(self) -> bool:
        """True while no rank has ended."""
        return all(rank.exitcode is None for rank in self.ranks)

    def finish(self) -> None:
        """Waits for a good end."""
        for rank in self.ranks:
            rank.join(PATIENCE)
        assert [rank.exitcode for rank in self.ranks] == [0] * len(self.ranks), self._log.read_text()[-4000:]

    def end(self) -> None:
        """Ends the ranks that are left, as torchrun does when one has died."""
        for rank in self.ranks:
            rank.terminate()
        for rank in self.ranks:
            rank.join(PATIENCE)
        assert not any(rank.is_alive() for rank in self.ranks), "a rank does not end when it is told to"


def run_rank(run: Callable[[Config], Any], settings: str, environment: dict[str, str], log: Path) -> None:
    """The work of one process."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= environment
    torch.set_num_threads(1)
    run(Config.model_validate_json(settings))
