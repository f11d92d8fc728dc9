"""Dataset and content on a disk of each host: copied once, by the first process of a host, and trained from there."""

from __future__ import annotations

import fcntl
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_config, write_inputs

from mtmh.artifacts import open_artifact
from mtmh.distributed.ranks import join_ranks
from mtmh.training import trainer
from mtmh.training.local_copy import local_copy


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    return tmp_path


def test_the_first_process_of_a_host_copies_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, folder = root / "disk", root / "content"
    with join_ranks("cpu") as ranks:
        assert local_copy(folder, "content", None, ranks) == folder
        second = replace(ranks, rank=1, world_size=4, local_world_size=2)
        copied = local_copy(folder, "content", disk, second)
        assert not disk.exists(), "another process of the host copies"
        left = disk / f".{copied.name}.partial"
        left.mkdir(parents=True)
        (left / "half").touch()
        third = replace(second, rank=2)  # the first of the second host
        assert local_copy(folder, "content", disk, third) == copied
        assert sorted(path.name for path in disk.iterdir()) == [f".{copied.name}.lock", copied.name]
        assert sorted(path.name for path in copied.iterdir()) == sorted(path.name for path in folder.iterdir())
        assert (copied / "embeddings.npy").read_bytes() == (folder / "embeddings.npy").read_bytes()
        monkeypatch.setattr(shutil, "copytree", None)
        assert local_copy(folder, "content", disk, ranks) == copied, "it is there"
        (copied / "embeddings.npy").write_bytes(b"cut")
        with pytest.raises(ValueError, match=r"embeddings.npy"):
            local_copy(folder, "content", disk, ranks)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(ValueError, match=r"paths.local\): 0 bytes are free"):
            local_copy(root / "dataset", "dataset", disk, ranks)


def test_a_run_waits_for_another_one_that_copies_the_same(root: Path) -> None:
    disk, folder = root / "disk", root / "content"
    name = f"content-{open_artifact(folder, 'content').manifest.digest[:16]}"
    begun = disk / f".{name}.partial"
    begun.mkdir(parents=True)
    with join_ranks("cpu") as ranks, ThreadPoolExecutor(1) as pool, (disk / f".{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = pool.submit(local_copy, folder, "content", disk, ranks)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        shutil.copytree(folder, begun, dirs_exist_ok=True)
        begun.rename(disk / name)
        before = (disk / name).stat().st_ino
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert waiting.result(timeout=30) == disk / name
        assert (disk / name).stat().st_ino == before, "its copy is taken"


def test_training_reads_the_copies(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []

    def train(run: Any, *_: object, **__: object) -> list[Path]:
        trained.append(run)
        return [root]

    monkeypatch.setattr(trainer, "_train", train)
    trainer.train(tiny_config(root, paths={"root": str(root), "local": str(root / "disk")}))
    (run,) = trained
    assert {run.dataset.artifact.path.parent, run.content.artifact.path.parent} == {root / "disk"}
    digests = [open_artifact(root / kind, kind).manifest.digest for kind in ("dataset", "content")]
    assert [run.dataset.artifact.manifest.digest, run.content.artifact.manifest.digest] == digests
