"""Artifacts go to a real S3 server and come back whole or not at all, whenever a process is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mtmh.artifacts import MANIFEST, Artifact, DamagedArtifactError, open_artifact, write_artifact
from mtmh.cli import app
from mtmh.index.artifact import AnnRecall, IndexSummary, RankedBy
from mtmh.index.pulled import pull_version
from mtmh.index.versions import current_version
from mtmh.places import AnyPath, RemotePath, any_path
from mtmh.signing import SignatureError, sign, write_keys
from mtmh.transfer import POINTER, pull, push

MANY = 150  # files, so that it takes long enough to be killed in the middle


def artifact(path: Path, text: str, num_files: int = 3) -> Artifact:
    with write_artifact(path, "content", config={"text": text}) as writer:
        (writer.folder / "sub [1] %20").mkdir()
        (writer.folder / "empty").touch()
        for number in range(num_files):
            (writer.folder / "sub [1] %20" / f"{number}.bin").write_bytes(f"{text} {number} ".encode() * 1000)
    return open_artifact(path, "content")


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def keys(place: RemotePath) -> set[str]:
    return {info.path.removeprefix(f"{place.path}/") for info in place.files()}


@pytest.mark.parametrize("on_s3", [True, False])
def test_a_pushed_artifact_comes_back_as_it_was(tmp_path: Path, bucket: RemotePath, on_s3: bool) -> None:
    there: AnyPath = bucket / "models" if on_s3 else tmp_path / "there"
    one, two = artifact(tmp_path / "one", "one"), artifact(tmp_path / "two", "two", 5)
    with pytest.raises(ValueError, match="no artifact is published here; mtmh artifact push publishes one"):
        pull(there, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    first = push(one.path, there)
    copy, is_new = pull(there, tmp_path / "copy")
    assert is_new
    assert content(copy.path) == content(one.path)
    assert not pull(there, tmp_path / "copy")[1]
    second = push(two.path, there)
    assert second != first
    assert content(pull(there, tmp_path / "copy")[0].path) == content(two.path), "an older one is replaced"
    # The folder of a version can be named, and an earlier one published again.
    assert content(pull(there / first, tmp_path / "old")[0].path) == content(one.path)
    assert push(one.path, there) == first
    assert content(pull(there, tmp_path / "copy")[0].path) == content(one.path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_versions_beyond_those_kept_are_removed(tmp_path: Path, bucket: RemotePath) -> None:
    there = bucket / "models"
    names = [push(artifact(tmp_path / "a", text).path, there, keep=2) for text in "abc"]
    assert {key.partition("/")[0] for key in keys(there)} == {POINTER, *names[1:]}


def test_an_altered_file_is_refused_on_either_way(tmp_path: Path, bucket: RemotePath) -> None:
    there = bucket / "models"
    kept = content(artifact(tmp_path / "one", "one").path)
    name = push(tmp_path / "one", there)
    pull(there, tmp_path / "copy")
    other = artifact(tmp_path / "other", "other").path
    (other / "sub [1] %20" / "0.bin").write_bytes(b"x" * 8000)
    with pytest.raises(DamagedArtifactError, match=r"other/sub \[1\] %20/0\.bin: altered since it was written"):
        push(other, there)
    assert content(pull(there, tmp_path / "copy")[0].path) == kept
    altered = there / name / "sub [1] %20/1.bin"
    for text, reason in ((b"y" * 6000, "SHA-256 differs"), (b"y" * 6001, "bytes or more, the manifest says 6000")):
        with altered.filesystem.open_output_stream(altered.path) as file:
            file.write(text)
        with pytest.raises(DamagedArtifactError, match=rf"s3://.*sub \[1\] %20/1\.bin: .*{reason}"):
            pull(there, tmp_path / "fresh")
    altered.filesystem.delete_file(altered.path)
    with pytest.raises(DamagedArtifactError, match="missing, although the manifest lists it"):
        pull(there, tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()
    with write_artifact(tmp_path / "set", "dataset", config={}) as writer:
        (writer.folder / "x").touch()
    with pytest.raises(ValueError, match="holds a dataset artifact, not a content artifact"):
        pull(there, tmp_path / "set")


def test_a_signature_travels_and_can_be_demanded(tmp_path: Path, bucket: RemotePath) -> None:
    there = bucket / "models"
    write_keys(tmp_path / "key")
    one = artifact(tmp_path / "one", "one").path
    push(one, there)
    with pytest.raises(SignatureError, match="not signed"):
        pull(there, tmp_path / "copy", trusted_key=tmp_path / "key.pub")
    assert not (tmp_path / "copy").exists()
    sign(one, tmp_path / "key")
    push(one, there)
    pull(there, tmp_path / "copy", trusted_key=tmp_path / "key.pub")
    assert content(tmp_path / "copy") == content(one)


def kill(arguments: list[str], is_time: Callable[[], bool]) -> None:
    """Runs the verb and kills it as soon as it is time."""
    process = subprocess.Popen([sys.executable, "-m", "mtmh.cli", "artifact", *arguments], env=dict(os.environ))
    end = time.monotonic() + 300
    while not is_time():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_push_that_is_killed_leaves_what_was_published(tmp_path: Path, bucket: RemotePath) -> None:
    there = bucket / "models"
    old, new = artifact(tmp_path / "old", "old"), artifact(tmp_path / "new", "new", MANY)
    name = push(old.path, there)
    before = keys(there)
    kill(["push", str(new.path), str(there)], lambda: len(keys(there) - before) > 20)
    left = keys(there) - before
    assert 0 < len(left) < MANY + 2
    assert not any(key.endswith(MANIFEST) for key in left)
    assert content(pull(there, tmp_path / "copy")[0].path) == content(old.path)
    assert push(new.path, there) != name
    assert content(pull(there, tmp_path / "copy")[0].path) == content(new.path)


def test_a_pull_that_is_killed_leaves_what_was_there(tmp_path: Path, bucket: RemotePath) -> None:
    there, copy = bucket / "models", tmp_path / "copy"
    old, new = artifact(tmp_path / "old", "old"), artifact(tmp_path / "new", "new", MANY)
    shutil.copytree(old.path, copy)
    push(new.path, there)
    partial = tmp_path / ".copy.partial" / "sub [1] %20"
    kill(["pull", str(there), str(copy)], lambda: sum(1 for _ in partial.glob("*")) > 20)
    assert content(copy) == content(old.path)
    open_artifact(copy, "content").verify()
    assert content(pull(there, copy)[0].path) == content(new.path)
    assert not partial.exists()


def test_a_service_s_folder_takes_the_published_index(tmp_path: Path, bucket: RemotePath) -> None:
    there, versions = bucket / "index", tmp_path / "runs" / "test" / "index"
    for number, recall in ((1, 0.9), (2, 0.5)):
        with write_artifact(tmp_path / str(number), "index", config={}) as writer:
            (writer.folder / "x").write_text(str(number))
            writer.summary |= summary(recall)
    push(tmp_path / "1", there)
    first = pull_version(there, versions, min_recall=0.8)
    assert first == current_version(versions)
    assert content(first) == content(tmp_path / "1")
    assert pull_version(there, versions, min_recall=0.8) is None
    push(tmp_path / "2", there)
    with pytest.raises(ValueError, match=r"below index\.min_recall = 0\.8"):
        pull_version(there, versions, min_recall=0.8)
    assert current_version(versions) == first, "what answers stays"
    second = pull_version(there, versions, min_recall=0.4)
    assert second == current_version(versions)
    assert content(second) == content(tmp_path / "2")
    with pytest.raises(ValueError, match="no artifact is published here"):
        pull_version(bucket / "nothing", versions)
    assert all(any(path.iterdir()) for path in (versions / "versions").iterdir())


def summary(recall: float) -> dict[str, object]:
    measured = AnnRecall(recall=recall, k=10, num_queries=5, num_probes=1)
    ranked_by = RankedBy(preranker="head-score", sorter="head-score", temperature=0.1)
    return IndexSummary(
        heads=["engagement"],
        dim=4,
        num_items=5,
        id_type="int64",
        num_clusters=1,
        ranked_by=ranked_by,
        num_probes=1,
        ann_recall={"engagement": measured},
    ).model_dump()


def test_the_verbs(tmp_path: Path, bucket: RemotePath) -> None:
    one = artifact(tmp_path / "one", "one").path
    runner, there = CliRunner(), f"{bucket}/x"
    done = runner.invoke(app, ["artifact", "push", str(one), there])
    assert done.exit_code == 0, done.output
    assert "published" in done.output
    done = runner.invoke(app, ["artifact", "pull", there, str(tmp_path / "copy")])
    assert done.exit_code == 0, done.output
    assert content(tmp_path / "copy") == content(one)
    assert "as published at" in runner.invoke(app, ["artifact", "pull", there, str(tmp_path / "copy")]).output
    assert runner.invoke(app, ["artifact", "push", str(tmp_path), there]).exit_code != 0
    assert any_path(there) == bucket / "x"
