"""The bounded queue: order, batches, deadlines, refusal, and what one bad job does to the others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mtmh.serving import work_queue
from mtmh.serving.work_queue import DeadlineExceeded, QueueFull, WorkQueue


def in_queue(body: Callable[[WorkQueue], Awaitable[None]], **settings: Any) -> None:
    """Runs ``body`` with a queue of one thread."""

    async def main() -> None:
        queue = WorkQueue("test", **{"threads": 1, "capacity": 100, **settings})
        try:
            await body(queue)
        finally:
            await asyncio.to_thread(queue.close)

    asyncio.run(asyncio.wait_for(main(), 20))


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


class Blocker:
    """Holds the thread until it is let go."""

    def __init__(self) -> None:
        self.taken = threading.Event()
        self.go = threading.Event()

    def run(self, payloads: list[Any]) -> list[Any]:
        self.taken.set()
        assert self.go.wait(10)
        return payloads

    async def hold(self, queue: WorkQueue) -> asyncio.Task[Any]:
        task = asyncio.create_task(queue.submit(self.run, "held", deadline=soon()))
        assert await asyncio.to_thread(self.taken.wait, 10)
        return task


def test_waiting_jobs_of_one_key_run_as_one_batch_up_to_its_size() -> None:
    batches: list[list[int]] = []

    def run(payloads: list[int]) -> list[int]:
        batches.append(payloads)
        return [10 * payload for payload in payloads]

    async def body(queue: WorkQueue) -> None:
        blocker = Blocker()
        held = await blocker.hold(queue)
        jobs = [
            asyncio.create_task(queue.submit(run, number, deadline=soon(), key=number % 2, size=2))
            for number in range(8)
        ]
        await asyncio.sleep(0.05)
        assert queue.depth == 8
        blocker.go.set()
        done = await asyncio.gather(*jobs)
        assert [job.result for job in done] == [10 * number for number in range(8)]
        assert all(job.waited >= 0.04 for job in done)
        assert (await held).result == "held"

    in_queue(body, max_batch=6)
    assert batches == [[0, 2, 4], [1, 3, 5], [6], [7]]


def test_jobs_without_a_key_run_alone() -> None:
    sizes: list[int] = []

    async def body(queue: WorkQueue) -> None:
        blocker = Blocker()
        await blocker.hold(queue)
        jobs = [asyncio.create_task(queue.submit(lambda number: number, place, deadline=soon())) for place in range(3)]
        await asyncio.sleep(0.02)
        blocker.go.set()
        assert [job.result for job in await asyncio.gather(*jobs)] == [0, 1, 2]

    in_queue(body, max_batch=100, on_batch=sizes.append)
    assert sizes == [1, 1, 1, 1]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def body(queue: WorkQueue) -> None:
        blocker = Blocker()
        held = await blocker.hold(queue)
        waiting = [asyncio.create_task(queue.submit(lambda number: number, 0, deadline=soon())) for _ in range(2)]
        await asyncio.sleep(0.02)
        with pytest.raises(QueueFull) as refused:
            await queue.submit(lambda number: number, 0, deadline=soon())
        assert refused.value.retry_after >= 1
        blocker.go.set()
        await asyncio.gather(held, *waiting)
        assert (await queue.submit(lambda number: number, 5, deadline=soon())).result == 5

    in_queue(body, capacity=2)


def test_a_job_whose_budget_ends_in_the_queue_is_never_run() -> None:
    ran: list[str] = []

    def run(payloads: list[str]) -> list[str]:
        ran.extend(payloads)
        return payloads

    async def body(queue: WorkQueue) -> None:
        blocker = Blocker()
        held = await blocker.hold(queue)
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await queue.submit(run, "late", deadline=soon(0.4))
        assert 0.35 < time.monotonic() - start < 4.0
        blocker.go.set()
        await held
        await queue.submit(run, "in time", deadline=soon())

    in_queue(body)
    assert ran == ["in time"]


def test_late_jobs_free_their_places() -> None:
    async def body(queue: WorkQueue) -> None:
        blocker = Blocker()
        held = await blocker.hold(queue)
        late = [asyncio.create_task(queue.submit(lambda number: number, 0, deadline=soon(0.4))) for _ in range(2)]
        assert all(
            isinstance(outcome, DeadlineExceeded) for outcome in await asyncio.gather(*late, return_exceptions=True)
        )
        fresh = asyncio.create_task(queue.submit(lambda number: number, 7, deadline=soon()))
        await asyncio.sleep(0.02)
        blocker.go.set()
        assert (await fresh).result == 7
        await held

    in_queue(body, capacity=2)


def test_one_bad_job_does_not_fail_its_batch() -> None:
    def run(payloads: list[int]) -> list[int]:
        if 3 in payloads:
            raise ValueError("three")
        return payloads

    async def body(queue: WorkQueue) -> None:
        blocker = Blocker()
        await blocker.hold(queue)
        jobs = [asyncio.create_task(queue.submit(run, place, deadline=soon(), key="same")) for place in range(5)]
        await asyncio.sleep(0.02)
        blocker.go.set()
        done = await asyncio.gather(*jobs, return_exceptions=True)
        assert isinstance(done.pop(3), ValueError)
        assert [job.result for job in done] == [0, 1, 2, 4]

    in_queue(body, max_batch=10)


def test_closing_finishes_what_waits_and_takes_no_more() -> None:
    async def body(queue: WorkQueue) -> None:
        blocker = Blocker()
        held = await blocker.hold(queue)
        waiting = asyncio.create_task(queue.submit(lambda number: number, 1, deadline=soon()))
        await asyncio.sleep(0.02)
        closing = asyncio.create_task(asyncio.to_thread(queue.close))
        await asyncio.sleep(0.02)
        with pytest.raises(QueueFull):
            await queue.submit(lambda number: number, 2, deadline=soon())
        blocker.go.set()
        await closing
        assert (await held).result == "held"
        assert (await waiting).result == 1

    in_queue(body)


def test_the_event_loop_goes_on_while_threads_compute() -> None:
    def wait(_: Any) -> list[None]:
        time.sleep(0.3)
        return [None]

    async def body(queue: WorkQueue) -> None:
        job = asyncio.create_task(queue.submit(wait, None, deadline=soon()))
        ticks = 0
        while not job.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks >= 10

    in_queue(body)


def test_a_job_that_would_be_answered_too_late_is_refused_at_once() -> None:
    def slow(payloads: list[int]) -> list[int]:
        time.sleep(0.01)
        return payloads

    async def body(queue: WorkQueue) -> None:
        for number in range(60):  # the queue learns how long a job takes
            await queue.submit(slow, number, deadline=soon())
        blocker = Blocker()
        held = await blocker.hold(queue)
        taken = [asyncio.create_task(queue.submit(slow, number, deadline=soon(2.0))) for number in range(1000)]
        await asyncio.sleep(0)
        refused = [task for task in taken if task.done()]
        assert 0 < len(refused) < 1000
        for task in refused:
            with pytest.raises(QueueFull):
                await task
        assert len(refused) >= 1000 - 2.0 / 0.009, "a thread answers no more than that in the time budget"
        patient = asyncio.create_task(queue.submit(slow, 0, deadline=soon(60.0)))
        await asyncio.sleep(0)
        assert not patient.done(), "who can wait is not refused"
        blocker.go.set()
        await asyncio.gather(held, patient, *taken, return_exceptions=True)

        # With nothing waiting even a short budget gets its try, or stale means would refuse for ever.
        with pytest.raises(DeadlineExceeded):
            await queue.submit(slow, 0, deadline=soon(0.001))

    in_queue(body, capacity=10_000)


def test_a_job_that_has_waited_until_there_is_hardly_time_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_queue, "_MEMORY_SECONDS", 60.0)
    ran: list[str] = []

    def slow(payloads: list[Any]) -> list[Any]:
        ran.extend(payloads)
        time.sleep(0.5)
        return payloads

    async def body(queue: WorkQueue) -> None:
        await queue.submit(slow, "measured", deadline=soon())
        blocker = Blocker()
        held = await blocker.hold(queue)
        older, newest = (
            asyncio.create_task(queue.submit(slow, name, deadline=soon(seconds)))
            for name, seconds in (("older", 1.6), ("newest", 10.0))
        )
        await asyncio.sleep(1.2)  # of the budget of 1.6 s less than a batch takes is left
        blocker.go.set()
        with pytest.raises(QueueFull):
            await older
        assert (await newest).result == "newest"
        await held
        assert ran == ["measured", "newest"]

    in_queue(body)
