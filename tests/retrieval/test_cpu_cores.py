"""The number of cores that the service takes."""

import asyncio
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import faiss
import pytest
import torch

from mtmh.retrieval.cpu_cores import cgroup_cores, compute_with, usable_cores
from mtmh.serving.work_queue import WorkQueue


def test_cores_are_those_of_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({}, None),
        ({"": "max 100000", "pod": "max 100000", "pod/box": "max 100000"}, None),
        ({"pod": "400000 100000", "pod/box": "250000 100000"}, 2),
        ({"pod": "150000 100000", "pod/box": "max 100000"}, 1),
        ({"pod/box": "20000 100000"}, 1),
        ({"": "300000 100000", "another": "100000 100000"}, 3),
    ],
)
def test_cores_are_within_the_quota_of_the_container(
    tmp_path: Path, quotas: dict[str, str], expected: int | None
) -> None:
    membership = tmp_path / "membership"
    membership.write_text("1:cpu:/elsewhere\n0::/pod/box\n")
    for folder, quota in quotas.items():
        (tmp_path / "groups" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / folder / "cpu.max").write_text(f"{quota}\n")
    found = cgroup_cores(tmp_path / "groups", membership)
    assert found == expected or (expected is None and found > 1_000_000)
    membership.unlink()
    assert cgroup_cores(tmp_path / "groups", membership) >= 1


def test_a_tower_that_loads_torch_computes_with_the_share_of_its_thread() -> None:
    code = (
        "import sys, threading, pyarrow as pa, numpy as np\n"
        "from mtmh.retrieval.cpu_cores import compute_with; from mtmh.tower.fresh import Tower\n"
        "class Stopped(Exception): pass\n"
        "def stop(rows): raise Stopped\n"
        "tower = object.__new__(Tower); tower.features = type('Features', (), {'encode': staticmethod(stop)})\n"
        "def work():\n"
        "    compute_with(3); assert 'torch' not in sys.modules\n"
        "    try: tower.embed(pa.table({'item_id': [1]}))\n"
        "    except Stopped: pass\n"
        "    import torch; torch.ones(300, 300) @ torch.ones(300, 300); print(torch.get_num_threads())\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3"]


def test_every_thread_computes_with_its_share() -> None:
    queue = WorkQueue("test", threads=2, capacity=9, on_start=partial(compute_with, 3))

    def threads(_: list[None]) -> list[tuple[int, int]]:
        torch.ones(300, 300) @ torch.ones(300, 300)  # sets its number of threads at the first use
        time.sleep(0.05)
        return [(faiss.omp_get_max_threads(), torch.get_num_threads())]

    async def ask() -> set[tuple[int, int]]:
        jobs = [queue.submit(threads, None, deadline=time.monotonic() + 60) for _ in range(4)]
        return {job.result for job in await asyncio.gather(*jobs)}

    before = torch.get_num_threads()
    try:
        assert asyncio.run(ask()) == {(3, 3)}
    finally:
        queue.close()
        torch.set_num_threads(before)
