"""A bounded queue before a bounded pool of threads: what does not fit is refused, what waits too long is dropped.

What would be answered too late is refused at once: work on it would be thrown away, and under overload that is all the
work there is.

The event loop only waits; all computing is done by the threads. A thread that becomes free takes the oldest job and
with it whatever else waits and may run in the same batch. Nothing waits for a batch to fill: alone, a job runs at once.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

Run = Callable[[list[Any]], list[Any]]

_REMEMBERED = 32  # batches by which times are expected, at most ...
_MEMORY_SECONDS = 2.0  # ... and none older than this: what made them slow may have gone
_USABLE = 0.5  # of a job's time budget: estimates err, and another process may take the cores for a while


class QueueFull(Exception):
    """The queue has no room, or is so long that the answer would be late.

    ``retry_after``: seconds after which there probably is room.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class DeadlineExceeded(Exception):
    """The budget of the request ended before its answer was there."""


@dataclass(frozen=True)
class Finished:
    """The result of a job, and the seconds it waited for a thread."""

    result: Any
    waited: float


@dataclass(eq=False)
class _Job:
    run: Run
    key: Hashable | None  # jobs of one key may run as one batch; None: alone
    payload: Any
    size: int
    deadline: float  # of time.monotonic()
    future: asyncio.Future[Finished]
    loop: asyncio.AbstractEventLoop
    submitted: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class _Batch:
    ended: float  # of time.monotonic()
    seconds: float  # it took
    jobs: int


class WorkQueue:
    """Runs jobs of the event loop in threads.

    Args:
        name: of the threads.
        threads: how many jobs or batches run at the same time.
        capacity: jobs that may wait.
        max_batch: largest sum of the sizes of jobs that run as one batch; a larger job runs alone.
        on_batch: told the number of jobs of each batch.
        on_start: called by each thread before its first job.
        lag: seconds after which an answer that is there is sent.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int,
        capacity: int,
        max_batch: int = 1,
        on_batch: Callable[[int], None] | None = None,
        on_start: Callable[[], None] | None = None,
        lag: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._capacity = capacity
        self._lag = lag
        self._max_batch = max_batch
        self._on_batch = on_batch
        self._on_start = on_start
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._running = 0
        self._started: dict[int, float] = {}  # thread -> when its batch began
        self._recent: deque[_Batch] = deque(maxlen=_REMEMBERED)
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{place}", daemon=True) for place in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Jobs that wait for a thread."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """True if one more job would be refused."""
        return len(self._waiting) >= self._capacity

    @property
    def running(self) -> int:
        """Jobs that a thread works on."""
        return self._running

    def would_be_late(self, deadline: float) -> bool:
        """True if a job that comes now would probably miss its deadline, of ``time.monotonic()``."""
        # Where nothing waits and a thread is free the job is taken in any case: only work tells how long it takes.
        if not self._waiting and len(self._started) < len(self._threads):
            return False
        mean, slow, job = self._expected()
        # Half a batch under way, then its own.
        expected = self._seconds_to_empty(job) + 0.5 * mean + slow
        return expected > _USABLE * (deadline - self._lag() - time.monotonic())

    async def submit(
        self, run: Run, payload: Any, *, deadline: float, key: Hashable | None = None, size: int = 1
    ) -> Finished:
        """Waits for the result of one job.

        Args:
            run: maps the payloads of a batch to their results, in a thread. If it raises for a batch of several, each
                job is run again alone, so that one bad request does not fail the others.
            payload: of this job.
            deadline: of ``time.monotonic()``; a job that no thread took by then is never run.
            key: jobs of equal key and ``run`` may share a batch; None: alone.
            size: of the job, in the unit of ``max_batch``.

        Raises:
            QueueFull: too many jobs wait already, or so many that this one would probably miss its deadline; or it has
                waited until there was hardly time to run it.
            DeadlineExceeded: the result did not come in time.
            Exception: whatever ``run`` raised.
        """
        loop = asyncio.get_running_loop()
        job = _Job(run, key, payload, size, deadline, loop.create_future(), loop)
        with self._changed:
            if self._closed:
                raise QueueFull(1)
            if len(self._waiting) >= self._capacity or self.would_be_late(deadline):
                raise QueueFull(self._retry_after(self._expected()[2]))
            self._waiting.append(job)
            self._changed.notify()
        try:
            async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                return await job.future
        except TimeoutError:
            raise DeadlineExceeded("the time budget of the request is used up") from None
        finally:
            self._forget(job)

    def close(self) -> None:
        """Takes no more jobs, finishes those it has, and ends the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _expected(self) -> tuple[float, float, float]:
        """Seconds of a batch in the mean, of a slow one, and of a thread's time for one job."""
        now = time.monotonic()
        recent = [batch for batch in self._recent.copy() if batch.ended > now - _MEMORY_SECONDS]
        times = [batch.seconds for batch in recent]
        # If every thread is at work, even the youngest batch takes as long as it has taken so far.
        begun = list(self._started.copy().values())
        if len(begun) == len(self._threads):
            times.append(now - max(begun))
        if not recent:
            return max(times, default=0.0), max(times, default=0.0), 0.0
        return fmean(times), max(times), sum(times[: len(recent)]) / sum(batch.jobs for batch in recent)

    def _seconds_to_empty(self, job_seconds: float) -> float:
        return len(self._waiting) * job_seconds / len(self._threads)

    def _retry_after(self, job_seconds: float) -> int:
        return math.ceil(max(1.0, self._seconds_to_empty(job_seconds)))

    def _refuse_late(self) -> None:
        """Refuses the jobs that could hardly be answered in time any more; the caller holds the lock."""
        _, slow, job_seconds = self._expected()
        end = time.monotonic() + slow + self._lag()
        # The newest one is run in any case, because only work tells how long it takes by now.
        late = [job for job in list(self._waiting)[:-1] if job.deadline < end]
        for job in late:
            self._waiting.remove(job)
            refused = QueueFull(self._retry_after(job_seconds))
            job.loop.call_soon_threadsafe(_resolve, [(job, refused)])

    def _work(self) -> None:
        if self._on_start is not None:
            self._on_start()
        while batch := self._take():
            start = self._started[threading.get_ident()]
            done = self._run_batch(batch)
            seconds = time.monotonic() - start
            with self._changed:
                self._running -= len(batch)
                del self._started[threading.get_ident()]
                self._recent.append(_Batch(start + seconds, seconds, len(batch)))
            by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Job, Any]]] = {}
            for job, result in zip(batch, done, strict=True):
                outcome = result if isinstance(result, Exception) else Finished(result, start - job.submitted)
                by_loop.setdefault(job.loop, []).append((job, outcome))
            for loop, outcomes in by_loop.items():
                loop.call_soon_threadsafe(_resolve, outcomes)

    def _take(self) -> list[_Job]:
        """The oldest job with what may run beside it; empty when closed and nothing is left."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            if not self._closed:
                self._refuse_late()
            first = self._waiting.popleft()
            batch, size = [first], first.size
            if first.key is not None:
                left: deque[_Job] = deque()
                while self._waiting:
                    job = self._waiting.popleft()
                    fits = size + job.size <= self._max_batch and job.key == first.key and job.run == first.run
                    if fits:
                        batch.append(job)
                        size += job.size
                    else:
                        left.append(job)
                self._waiting = left
            self._running += len(batch)
            self._started[threading.get_ident()] = time.monotonic()
        if self._on_batch is not None:
            self._on_batch(len(batch))
        return batch

    def _forget(self, job: _Job) -> None:
        """Frees the place of a job for which nobody waits any more, if no thread took it."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _run_batch(self, batch: list[_Job]) -> list[Any]:
        """The result or the exception of each job."""
        run = batch[0].run
        try:
            results = run([job.payload for job in batch])
            assert len(results) == len(batch)
            return results
        except Exception as error:
            if len(batch) == 1:
                return [error]
        return [self._run_batch([job])[0] for job in batch]


def _resolve(outcomes: list[tuple[_Job, Any]]) -> None:
    for job, outcome in outcomes:
        if job.future.done():  # nobody waits any more
            continue
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
