"""Artifact folders appear whole or not at all, and a reader says what does not fit."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtmh import artifacts
from mtmh.artifacts import (
    FORMAT_VERSION,
    MANIFEST,
    Artifact,
    ArtifactWriter,
    DamagedArtifactError,
    FileRecord,
    open_artifact,
    sealed,
    write_artifact,
)


def write(path: Path, text: str = "data", kind: str = "content", **kwargs: object) -> Artifact:
    with write_artifact(path, kind, config={"a": 1}, **kwargs) as writer:
        (writer.folder / "sub").mkdir()
        (writer.folder / "sub" / "x.bin").write_text(text)
        writer.summary["rows"] = len(text)
    return open_artifact(path, kind)


def test_round_trip(tmp_path: Path) -> None:
    artifact = write(tmp_path / "c")
    assert artifact.summary == {"rows": 4}
    assert list(artifact.manifest.files) == ["sub/x.bin"]
    artifact.verify()
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_the_digest_depends_on_content_and_inputs_not_on_time(tmp_path: Path) -> None:
    first, second, other = write(tmp_path / "a"), write(tmp_path / "b"), write(tmp_path / "c", "other")
    assert first.manifest.digest == second.manifest.digest != other.manifest.digest
    derived = write(tmp_path / "d", inputs={"dataset": other})
    assert derived.manifest.inputs == {"dataset": other.manifest.digest}
    assert derived.manifest.digest != first.manifest.digest


def test_a_failing_writer_leaves_the_old_artifact(tmp_path: Path) -> None:
    write(tmp_path / "c", "old")

    def fail() -> None:
        with write_artifact(tmp_path / "c", "content", config={}) as writer:
            (writer.folder / "x.bin").write_text("half")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert (tmp_path / "c" / "sub" / "x.bin").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_killed_writer_leaves_the_old_artifact_and_the_next_one_succeeds(tmp_path: Path) -> None:
    write(tmp_path / "c", "old")
    script = f"""
from pathlib import Path
from mtmh.artifacts import write_artifact
with write_artifact(Path({str(tmp_path / "c")!r}), "content", config={{}}) as writer:
    (writer.folder / "x.bin").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGKILL)
    assert (tmp_path / "c" / "sub" / "x.bin").read_text() == "old"
    assert write(tmp_path / "c", "new").summary == {"rows": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "sub" / "x.bin").unlink(), r"x\.bin: missing"),
        (lambda p: (p / "sub" / "x.bin").write_text("dat"), r"x\.bin: 3 bytes, the manifest says 4"),
        (lambda p: (p / MANIFEST).unlink(), "no content artifact here .*; run mtmh content embed first"),
        (lambda p: (p / MANIFEST).write_text("{"), "not a valid manifest"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(DamagedArtifactError, match=message):
        open_artifact(tmp_path / "c", "content")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99, "shards": 4}, "format version 99, this mtmh reads 1"),
        ({"shards": 4}, "not a manifest that this mtmh knows: shards"),
        ({"kind": "index"}, "expected a content artifact, found a index artifact"),
        ({"kind": "novelty"}, "not a manifest that this mtmh knows: kind"),
    ],
)
def test_what_another_mtmh_wrote_is_refused_and_is_no_damage(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    write(tmp_path / "c")
    edit(tmp_path / "c", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        open_artifact(tmp_path / "c", "content")
    assert not isinstance(caught.value, DamagedArtifactError)


def edit(path: Path, **changes: object) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(sealed({**manifest, **changes})))


def test_a_manifest_that_was_edited_or_damaged_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "c").path
    whole = (path / MANIFEST).read_text()
    tree = json.loads(whole)
    changes: list[dict[str, object]] = [
        {"summary": {"rows": 5}},
        {"files": {}},
        {"config": {"a": 2}},
        {"created_at": "2026-01-01"},
        {"inputs": {"dataset": "0" * 64}},
    ]
    for change in changes:
        (path / MANIFEST).write_text(json.dumps(tree | change))
        with pytest.raises(DamagedArtifactError, match=r"manifest.json: altered since it was written"):
            open_artifact(path, "content")
    with write_artifact(tmp_path / "d", "content", config={}) as writer:
        writer.summary["heads"] = ["engagement", "relevance"]
    text = (tmp_path / "d" / MANIFEST).read_text()
    reordered = json.loads(text)
    reordered["summary"]["heads"].reverse()
    (tmp_path / "d" / MANIFEST).write_text(json.dumps(reordered))
    with pytest.raises(DamagedArtifactError, match="altered since"):
        open_artifact(tmp_path / "d", "content")
    # Other spacing says the same; a writer from before there was a digest of the manifest recorded none.
    (path / MANIFEST).write_text(json.dumps(tree))
    assert open_artifact(path, "content").manifest.sha256 == tree["sha256"]
    del tree["sha256"]
    (path / MANIFEST).write_text(json.dumps(tree))
    assert open_artifact(path, "content").summary == {"rows": 4}


def test_a_replacement_that_is_killed_between_its_two_renames_leaves_the_old_artifact(tmp_path: Path) -> None:
    path = write(tmp_path / "c", "old").path

    def killed_in_between() -> None:
        real = Path.replace

        def replace(source: Path, target: Path) -> Path:
            moved = real(source, target)
            if Path(target).name == ".c.old":
                os.kill(os.getpid(), signal.SIGKILL)
            return moved

        Path.replace = replace  # type: ignore[method-assign, assignment]
        write(path, "new")

    for read in (lambda: open_artifact(path, "content"), lambda: ArtifactWriter(path, "content")):
        writer = multiprocessing.get_context("fork").Process(target=killed_in_between)
        writer.start()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        assert not path.exists()
        read()
        assert (open_artifact(path, "content").path / "sub" / "x.bin").read_text() == "old"
        assert not (tmp_path / ".c.old").exists()
    write(path, "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


def test_all_is_on_the_disk_before_the_folder_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(artifacts, "fsync", lambda path: synced.append(str(path.relative_to(tmp_path))))
    write(tmp_path / "c")
    expected = [".c.partial", ".c.partial/manifest.json", ".c.partial/sub", ".c.partial/sub/x.bin"]
    assert sorted(synced[:-1]) == expected
    assert synced[-1] == ".", "the name after it"


def test_verify_finds_an_altered_file_of_equal_size(tmp_path: Path) -> None:
    artifact = write(tmp_path / "c")
    (tmp_path / "c" / "sub" / "x.bin").write_text("dAta")
    with pytest.raises(ValueError, match=r"x\.bin: altered"):
        artifact.verify()


def test_ranks_share_the_reading_of_files(tmp_path: Path) -> None:
    writer = ArtifactWriter(tmp_path / "c", "content")
    writer.begin()
    for name in ("a", "b", "c", "d", "e"):
        (writer.folder / name).write_text(name * 9)
    records = {"b": FileRecord.of(writer.folder / "b"), "c": FileRecord(bytes=9, sha256="as its writer says")}
    artifact = writer.commit({}, {}, records)
    assert artifact.manifest.files["b"].sha256 == hashlib.sha256(b"b" * 9).hexdigest()
    found = []
    for part in range(3):
        try:
            artifact.verify(part, 3)
        except DamagedArtifactError as error:
            found.append(str(error))
    assert len(found) == 1
    assert "c/c: altered" in found[0]


def test_a_folder_with_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is no content artifact"):
        write(tmp_path / "thesis")
    write(tmp_path / "c")
    with pytest.raises(ValueError, match="holds a content artifact, not a index artifact"):
        write(tmp_path / "c", kind="index")
    assert (tmp_path / "thesis" / "chapter").read_text() == "years of work"


def test_an_artifact_of_another_format_is_written_anew(tmp_path: Path) -> None:
    manifest = write(tmp_path / "c", "old").path / MANIFEST
    manifest.write_text(json.dumps({"format_version": FORMAT_VERSION + 1, "kind": "content", "more": 1}))
    with pytest.raises(ValueError, match=r"another|format version"):
        open_artifact(tmp_path / "c", "content")
    assert write(tmp_path / "c", "new").summary == {"rows": 3}
    manifest.write_text(json.dumps({"format_version": FORMAT_VERSION + 1, "kind": "dataset"}))
    with pytest.raises(ValueError, match="holds a dataset artifact, not a content artifact"):
        write(tmp_path / "c", "new")
