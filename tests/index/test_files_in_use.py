"""Mapped files that someone cuts off: noticed, and not while they are read."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtmh.artifacts import DamagedArtifactError, open_artifact, write_artifact
from mtmh.index.files_in_use import FilesInUse

CUT_OFF = "import os, sys; file = open(sys.argv[1], 'r+b'); print('in', flush=True); file.truncate(10)"


@pytest.fixture
def asked() -> Iterator[threading.Event]:
    """Set by SIGIO."""
    event = threading.Event()
    before = signal.signal(signal.SIGIO, lambda *_: event.set())
    yield event
    signal.signal(signal.SIGIO, before)


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    with write_artifact(tmp_path / "version", "index", config={}) as writer:
        (writer.folder / "a.lists").write_bytes(bytes(1000))
        (writer.folder / "a.faiss").write_bytes(bytes(50))
    return tmp_path / "version" / "a.lists"


def wait_for(event: threading.Event) -> None:
    end = time.monotonic() + 30
    while not event.wait(0.01):  # the handler runs in this thread, between two of its steps
        assert time.monotonic() < end


def test_who_cuts_off_a_file_waits_for_those_who_read_it(lists: Path, asked: threading.Event) -> None:
    files = FilesInUse(open_artifact(lists.parent, "index"))
    files.hold()
    files.hold()
    reading = True
    writer = subprocess.Popen([sys.executable, "-c", CUT_OFF, str(lists)], stdout=subprocess.PIPE, text=True)
    try:
        wait_for(asked)
        giving = threading.Thread(target=files.give_way, args=(lambda: not reading,))
        giving.start()
        time.sleep(0.3)
        assert lists.stat().st_size == 1000
        assert writer.poll() is None, "it waits"
        with pytest.raises(DamagedArtifactError, match="being written while it is in use"):
            files.check()
        assert files.are_whole
        reading = False
        giving.join(30)
        assert writer.communicate(timeout=30)[0] == "in\n"
    finally:
        writer.kill()
        writer.communicate()
    with pytest.raises(DamagedArtifactError, match=r"a\.lists: cut off while it is in use, 10 of 1000 bytes are left"):
        files.check()
    files.hold()  # not of what is damaged: who brings it back does not wait
    asked.clear()
    lists.write_bytes(bytes(1000))
    files.check()
    assert not asked.is_set()
    files.hold()
    files.release()
    lists.write_bytes(bytes(1000))
    assert not asked.is_set()


def test_files_that_someone_writes_already_are_not_held(lists: Path, asked: threading.Event) -> None:
    files = FilesInUse(open_artifact(lists.parent, "index"))
    with lists.open("r+b"):
        files.hold()
    with (lists.parent / "a.faiss").open("r+b"):
        pass
    assert not asked.is_set()
    files.check()
