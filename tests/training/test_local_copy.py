"""Dataset and content on a disk of each host: copied once, by the first process of a host, and trained from there."""

from __future__ import annotations

import shutil
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
        left = disk / f"{copied.name}.{local_copy.__globals__['socket'].gethostname()}-1"
        left.mkdir(parents=True)
        third = replace(second, rank=2)  # the first of the second host
        assert local_copy(folder, "content", disk, third) == copied
        assert [path.name for path in disk.iterdir()] == [copied.name]
        assert (copied / "embeddings.npy").read_bytes() == (folder / "embeddings.npy").read_bytes()
        monkeypatch.setattr(shutil, "copytree", None)
        assert local_copy(folder, "content", disk, ranks) == copied, "it is there"
        (copied / "embeddings.npy").write_bytes(b"cut")
        with pytest.raises(ValueError, match=r"embeddings.npy"):
            local_copy(folder, "content", disk, ranks)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(ValueError, match=r"paths.local\): 0 bytes are free"):
            local_copy(root / "dataset", "dataset", disk, ranks)


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
