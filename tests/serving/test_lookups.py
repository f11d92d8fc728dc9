"""Looking items up by words, which anybody may do, beside the questions."""

import asyncio
import threading
import time
from pathlib import Path

from mtmh.config import load_config
from mtmh.serving.api import RetrieveRequest
from mtmh.serving.service import Service
from mtmh.serving.work_queue import QueueFull


def test_lookups_take_no_thread_of_the_questions(served_recipe: Path) -> None:
    config = load_config(served_recipe, ["service.threads=1", "service.timeout_ms=60000"])
    folders = config.model_dir("index"), config.model_dir("evaluation")
    service = Service(config.name, *folders, config.service, config.retrieval)
    go_on = threading.Event()

    async def ask() -> None:
        # The first is under way, sixteen wait, and the others are turned away at once.
        lookups = [asyncio.create_task(service.look_up(lambda: go_on.wait(60))) for _ in range(20)]
        refused, _ = await asyncio.wait(lookups, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert all(isinstance(future.exception(), QueueFull) for future in refused)
        answer = await service.retrieve(RetrieveRequest(triggers=[17], k=3), time.monotonic())
        assert answer.status_code == 200
        go_on.set()
        found = await asyncio.gather(*lookups, return_exceptions=True)
        assert {type(future) for future in found} == {bool, QueueFull}
        assert found.count(True) >= 16

    try:
        asyncio.run(ask())
    finally:
        go_on.set()
        service.close()
