"""Ranks of one start of a job find each other among what earlier starts left in the store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from mtmh.distributed.rendezvous import agree

TIMEOUT = timedelta(seconds=20)


class Meeting:
    """A store as torchrun keeps it over restarts, and ranks with a connection each."""

    def __init__(self) -> None:
        self.server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def store(self) -> dist.Store:
        return dist.TCPStore("localhost", self.server.port, is_master=False, wait_for_workers=False, timeout=TIMEOUT)

    def names(self, ranks: list[int], world_size: int, timeout: timedelta = TIMEOUT) -> list[str]:
        with ThreadPoolExecutor(len(ranks)) as pool:
            answers = [pool.submit(agree, self.store(), rank, world_size, timeout) for rank in ranks]
            return [answer.result() for answer in answers]


def test_each_start_has_a_name_of_its_own() -> None:
    meeting = Meeting()
    seen = set()
    for world_size in (3, 3, 1, 2):
        names = meeting.names(list(range(world_size)), world_size)
        assert len(set(names)) == 1
        seen.update(names)
    assert len(seen) == 4


@pytest.mark.parametrize("died", [[0], [1], [2], [1, 2]])
def test_a_start_that_died_on_the_way_does_not_mislead_the_next(died: list[int]) -> None:
    meeting = Meeting()
    before = meeting.names([0, 1, 2], 3)
    short = timedelta(seconds=0.3)
    with pytest.raises(TimeoutError):
        meeting.names([rank for rank in (0, 1, 2) if rank not in died], 3, short)
    names = meeting.names([2, 1, 0], 3)
    assert len(set(names)) == 1
    assert names[0] != before[0]


def test_a_rank_that_comes_late_is_waited_for() -> None:
    meeting = Meeting()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(agree, meeting.store(), 0, 3, TIMEOUT)
        second = pool.submit(agree, meeting.store(), 2, 3, TIMEOUT)
        assert agree(meeting.store(), 1, 3, TIMEOUT) == first.result() == second.result()


def test_missing_ranks_are_named() -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[1, 2\] of 3 did not come"):
        Meeting().names([0], 3, timedelta(seconds=0.1))
    with pytest.raises(TimeoutError, match="rank 2: rank 0 did not come"):
        Meeting().names([2], 3, timedelta(seconds=0.1))
