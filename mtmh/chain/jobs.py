"""Jobs of a chain: submit one through TorchX's runner, follow it, cancel it, and find what it printed.

In two places TorchX (0.7.0) is passed by:

* Its Slurm scheduler tells the state of a job by ``sacct``, and asks it before it cancels one. A cluster without
  accounting has no such answer, and of a job of several nodes TorchX takes the state of the last part for that of the
  whole. So the state is Slurm's own, by ``scontrol``, with the states of all parts, and ``scancel`` is called directly.
* Its local scheduler knows its jobs in memory only. After a chain was killed, its ranks go on, and would write where
  those of the next chain do. So the processes of a job are recorded, and the next chain ends those that are left.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from torchx.runner import get_runner
from torchx.schedulers.slurm_scheduler import SLURM_STATES
from torchx.specs import AppState

from mtmh.chain.record import Job, Process
from mtmh.config import Config, StageName

TAIL_LINES = 25


class Jobs:
    """A scheduler, asked through TorchX.

    Args:
        config: image, environment and mounts of all jobs, and what each stage asks for.
        recipe: as the jobs' verbs take it.
        overrides: settings to change, as the verbs take them.
        scheduler: name of one of TorchX's.
        cfg: settings of the scheduler, ``partition=gpu,time=60``.
        logs: where jobs on this machine write.

    Raises:
        ValueError: no such scheduler.
    """

    def __init__(self, config: Config, recipe: str, overrides: list[str], scheduler: str, cfg: str, logs: Path) -> None:
        self._config = config
        self._recipe = recipe
        self._overrides = overrides
        self._scheduler = scheduler
        self._local = scheduler == "local_cwd"
        self._logs = logs
        # TorchX's local scheduler would take Ctrl-C for itself; what a chain does on it is the chain's business.
        signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._runner = get_runner()
        known = sorted(self._runner.scheduler_backends())
        if scheduler not in known:
            raise ValueError(f"--scheduler {scheduler}: not one of {', '.join(known)}")
        self._options = self._runner.scheduler_run_opts(scheduler)
        for number, handler in signals.items():
            signal.signal(number, handler)
        self._cfg = cfg

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.close()

    def submit(self, stage: StageName, options: list[str]) -> Job:
        """Submits a stage.

        Args:
            stage: which.
            options: further arguments of its component.

        Raises:
            ValueError: the component or the scheduler refuses it.
        """
        settings = self._config.chain.stages.get(stage)
        chain = self._config.chain
        words = [*options]
        if settings is not None:
            words += ["-j", settings.j] if settings.j else []
            words += ["-h", settings.h] if settings.h else []
            words += ["--max_retries", str(settings.max_retries)]
        words += ["--image", chain.image] if chain.image else []
        words += ["--env", _joined(chain.env)] if chain.env else []
        words += ["--mounts", ",".join(chain.mounts)] if chain.mounts else []
        words += ["--recipe", self._recipe, *self._overrides]
        text = ",".join(part for part in (self._cfg, _joined(settings.cfg) if settings else "") if part)
        cfg = {**self._options.cfg_from_str(text), **({"log_dir": str(self._logs)} if self._local else {})}
        try:
            handle = self._runner.run_component(f"mtmh.{stage}", words, self._scheduler, cfg, workspace="")
        except (subprocess.CalledProcessError, OSError) as error:
            raise ValueError(f"{self._scheduler} did not take the job {stage}: {error}") from None
        return Job(handle=handle, host=socket.gethostname())

    def state(self, job: Job) -> AppState:
        """The state of the job; ``UNKNOWN``: the scheduler does not know it, or not any more."""
        # Slurm's own word first; what it has forgotten the accounting may know.
        told = _slurm_state(job.app_id) if self._scheduler == "slurm" else None
        if told is not None:
            return told
        try:
            status = self._runner.status(job.handle)
        except (subprocess.CalledProcessError, FileNotFoundError):
            return AppState.UNKNOWN
        return AppState.UNKNOWN if status is None else status.state

    def cancel(self, job: Job) -> None:
        """Ends the job; jobs on this machine have ended when this returns."""
        started = self.processes()
        if self._scheduler == "slurm":
            subprocess.run(["scancel", job.app_id], check=False)
        else:
            self._runner.cancel(job.handle)
        if self._local:
            end_processes(started)

    def processes(self) -> list[Process]:
        """All processes that jobs on this machine consist of, those of other chains not among them."""
        if not self._local:
            return []
        found = []
        for child in psutil.Process().children(recursive=True):
            try:
                found.append(Process(pid=child.pid, started=child.create_time()))
            except psutil.NoSuchProcess:
                continue
        return found

    def where_logs_are(self, job: Job) -> str:
        """For people."""
        if self._local:
            return str(self._logs / "torchx" / job.app_id)
        if self._scheduler == "slurm":
            return str(Path.cwd() / f"slurm-{job.app_id}-*")
        return f"torchx log {job.handle}"

    def tail(self, job: Job) -> str:
        """The last lines that the job's processes printed to their standard errors, where files tell."""
        if self._local:
            files = sorted((self._logs).rglob(f"{job.app_id}/**/stderr.log"))
        elif self._scheduler == "slurm":
            files = sorted(Path.cwd().glob(f"slurm-{job.app_id}-*.err"))
        else:
            return ""
        parts = [(file, _telling(file.read_text(errors="replace").splitlines())) for file in files]
        return "\n".join(f"--- {file}\n" + "\n".join(lines) for file, lines in parts if lines)


def end_processes(processes: list[Process], patience: float = 10.0) -> int:
    """Ends processes of this machine and waits until they are gone; one whose id has been given away is left alone.

    Args:
        processes: started by this chain or by one that was killed.
        patience: seconds between asking and killing.

    Returns:
        How many there were still.
    """
    running = []
    for process in processes:
        try:
            found = psutil.Process(process.pid)
            if abs(found.create_time() - process.started) < 1e-3:
                found.terminate()
                running.append(found)
        except psutil.NoSuchProcess:
            continue
    _, left = psutil.wait_procs(running, timeout=patience)
    for found in left:
        found.kill()
    psutil.wait_procs(left, timeout=patience)
    return len(running)


def _telling(lines: list[str]) -> list[str]:
    """The last lines, and before them those in which a verb says what is wrong: torchrun's traceback comes after it."""
    said = [line for line in lines[:-TAIL_LINES] if re.search(r"(^|\]:)error: ", line)]
    return [*said[-5:], *lines[-TAIL_LINES:]]


def _slurm_state(app_id: str) -> AppState | None:
    """The state of a job of one or several nodes; None: Slurm has forgotten it."""
    shown = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", app_id], capture_output=True, text=True, check=False
    ).stdout
    # Each node's part is a job to Slurm. While one is on its way, as in a state between two others, Slurm may yet start
    # all of them again. They have ended well when all have.
    states = [SLURM_STATES.get(name, AppState.RUNNING) for name in re.findall(r"JobState=(\w+)", shown)]
    for first in (AppState.RUNNING, AppState.PENDING, AppState.FAILED, AppState.CANCELLED, AppState.SUCCEEDED):
        if first in states:
            return first
    return None


def _joined(pairs: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in pairs.items())
