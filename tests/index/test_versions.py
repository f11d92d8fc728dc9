"""The versioned index folder: gate, publish, rollback, and what is refused."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from synthetic_dataset import make_config

from mtmh.artifacts import open_artifact, write_artifact
from mtmh.index.artifact import AnnRecall, IndexSummary, RankedBy
from mtmh.index.versions import (
    BelowGateError,
    current_version,
    find_version,
    list_versions,
    new_version,
    publish,
    rollback,
)


def build(index_dir: Path, recall: float = 0.9, version: Path | None = None) -> Path:
    """A version with the given recall; what it holds does not matter here."""
    path = version or new_version(index_dir)
    found = AnnRecall(k=100, num_probes=32, num_queries=10, recall=recall)
    summary = IndexSummary(
        heads=["engagement"],
        dim=4,
        num_items=3,
        id_type="int64",
        num_clusters=1,
        num_probes=32,
        ranked_by=RankedBy(preranker="head-score", sorter="head-score", temperature=0.1),
        ann_recall={"engagement": found},
    )
    with write_artifact(path, "index", config=make_config(index_dir).model_dump(mode="json")) as writer:
        np.save(writer.folder / "engagement.npy", np.full((3, 4), recall, np.float32))
        writer.summary |= summary.model_dump()
    return path


def states(index_dir: Path) -> dict[str, str]:
    return {version.name: version.state for version in list_versions(index_dir)}


def test_a_version_is_read_once_it_is_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no index is published here"):
        current_version(tmp_path)
    first = build(tmp_path)
    with pytest.raises(ValueError, match="no index is published here"):
        current_version(tmp_path)
    assert publish(first) == first == current_version(tmp_path) == tmp_path / "versions" / "000001"
    second = build(tmp_path)
    assert current_version(tmp_path) == first
    publish(second)
    assert current_version(tmp_path) == second
    assert current_version(second) == second, "a reader may be pointed at one version"
    assert states(tmp_path) == {"000002": "current", "000001": "published"}


def test_names_are_reserved_and_never_used_twice(tmp_path: Path) -> None:
    assert [new_version(tmp_path).name for _ in range(3)] == ["000001", "000002", "000003"]
    publish(build(tmp_path), keep=1)
    assert new_version(tmp_path).name == "000005"


def test_a_name_is_not_used_twice_after_a_rollback_either(tmp_path: Path) -> None:
    first, _, third = (publish(build(tmp_path)) for _ in range(3))
    rollback(tmp_path)
    publish(first)
    assert not third.exists()
    assert new_version(tmp_path).name == "000004", "a reader may still hold the one that was 000003"
    low, high = build(tmp_path, recall=0.1), build(tmp_path, recall=0.1)
    for version in (high, low):
        with pytest.raises(BelowGateError):
            publish(version, min_recall=0.8)
    assert new_version(tmp_path).name == "000007"


def test_a_pointer_without_the_highest_number_is_read(tmp_path: Path) -> None:
    publish(build(tmp_path))
    (tmp_path / "CURRENT").write_text('{"version": "000001", "before": [], "left": ["000007"]}')
    assert current_version(tmp_path).name == "000001"
    assert new_version(tmp_path).name == "000008"


def test_the_gate(tmp_path: Path) -> None:
    good, bad = publish(build(tmp_path)), build(tmp_path, recall=0.42)
    with pytest.raises(BelowGateError, match=r"engagement 0.4200 \(recall@100 of 10 queries, 32 probes\)"):
        publish(bad, min_recall=0.8)
    assert current_version(tmp_path) == good
    assert states(tmp_path) == {"000002.rejected": "rejected", "000001": "current"}
    with pytest.raises(BelowGateError):
        publish(build(tmp_path, recall=0.79), min_recall=0.8)
    assert states(tmp_path) == {"000003.rejected": "rejected", "000001": "current"}, "one rejected version is kept"
    with pytest.raises(BelowGateError):
        publish(find_version(tmp_path, "3"), min_recall=0.8)
    assert states(tmp_path)["000003.rejected"] == "rejected", "refused again, it is still there"
    assert publish(find_version(tmp_path, "3"), min_recall=0.79).name == "000003"
    assert states(tmp_path) == {"000003": "current", "000001": "published"}


def test_rollback_goes_back_over_what_was_published(tmp_path: Path) -> None:
    first, _, third = (publish(build(tmp_path)) for _ in range(3))
    with pytest.raises(ValueError, match="cannot go back to 000009"):
        rollback(tmp_path, "000009")
    assert rollback(tmp_path).name == "000002"
    fourth = publish(build(tmp_path))
    assert not third.exists(), "what was rolled back from leaves with the next publication"
    assert rollback(tmp_path).name == "000002", "not the version that was rolled back from"
    assert rollback(tmp_path) == first
    with pytest.raises(ValueError, match="nothing to go back to"):
        rollback(tmp_path)
    assert publish(fourth) == current_version(tmp_path), "a version on disk can be published again"


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for _ in range(5):
        publish(build(tmp_path), keep=2)
    assert states(tmp_path) == {"000005": "current", "000004": "published"}
    assert sorted(path.name for path in (tmp_path / "versions").iterdir()) == ["000004", "000005"]


def test_a_whole_version_that_was_never_published_outlives_the_publication_of_others(tmp_path: Path) -> None:
    publish(build(tmp_path), keep=2)
    candidate = build(tmp_path)
    for _ in range(3):
        publish(build(tmp_path), keep=2)
    assert states(tmp_path) == {"000005": "current", "000004": "published", "000002": "unpublished"}
    assert publish(candidate, keep=2) == current_version(tmp_path) == candidate
    assert states(tmp_path) == {"000005": "published", "000002": "current"}


def test_of_many_unpublished_versions_the_newest_stay(tmp_path: Path) -> None:
    for _ in range(4):
        build(tmp_path)
    publish(build(tmp_path), keep=2)
    assert states(tmp_path) == {
        "000005": "current", "000004": "unpublished", "000003": "unpublished"
    }, "two, as of the published ones"  # fmt: skip
    for _ in range(3):
        build(tmp_path)
    publish(find_version(tmp_path, "6"), keep=2)
    assert {"000007", "000008"} < set(states(tmp_path)), "newer than those that are published"


def test_what_is_still_there_of_a_version_that_was_kept_no_more_goes_with_the_next(tmp_path: Path) -> None:
    first = publish(build(tmp_path), keep=1)
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    publish(build(tmp_path), keep=1)
    copy.rename(first)  # as if that publication had been killed before it removed anything
    publish(build(tmp_path), keep=1)
    assert states(tmp_path) == {"000003": "current"}


def test_a_version_is_published_over_the_one_it_was_compared_with_or_not_at_all(tmp_path: Path) -> None:
    first, second, third = (build(tmp_path) for _ in range(3))
    publish(first, over="")
    with pytest.raises(ValueError, match="meant to follow no other version, but 000001 is the published one by now"):
        publish(second, over="")
    publish(second, over="000001")
    with pytest.raises(ValueError, match="meant to follow 000001, but 000002 is the published one by now"):
        publish(third, over="000001")
    assert current_version(tmp_path) == second


def test_what_a_killed_build_has_left_goes_with_the_versions_of_its_time(tmp_path: Path) -> None:
    killed = new_version(tmp_path)
    partial, lock = (killed.with_name(f".{killed.name}.{kind}") for kind in ("partial", "lock"))
    (partial / "scratch").mkdir(parents=True)
    lock.touch()
    publish(build(tmp_path), keep=2)
    assert partial.exists(), "it may be of a build that is under way"
    under_way = tmp_path / "versions" / ".000003.partial"
    under_way.mkdir()
    publish(build(tmp_path, version=tmp_path / "versions" / "000004"), keep=2)
    assert not partial.exists()
    assert not lock.exists()
    assert under_way.exists()
    publish(build(tmp_path), keep=2)
    assert not under_way.exists()
    assert states(tmp_path) == {"000005": "current", "000004": "published"}


@pytest.mark.parametrize("damage", ["alter", "truncate", "remove", "manifest"])
def test_a_damaged_version_is_refused(tmp_path: Path, damage: str) -> None:
    good, bad = publish(build(tmp_path)), build(tmp_path)
    file = bad / "engagement.npy"
    content = file.read_bytes()
    if damage == "alter":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    elif damage == "remove":
        file.unlink()
    else:
        (bad / "manifest.json").write_text('{"kind": "index"}')
    with pytest.raises(ValueError, match=r"engagement\.npy|manifest\.json"):
        publish(bad)
    assert current_version(tmp_path) == good
    good_file = good / "engagement.npy"
    publish(build(tmp_path))
    good_file.write_bytes(good_file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match="altered since"):
        rollback(tmp_path)
    assert current_version(tmp_path).name == "000003"


def test_a_damaged_pointer_is_said(tmp_path: Path) -> None:
    publish(build(tmp_path))
    (tmp_path / "CURRENT").write_text('{"version": "../elsewhere"}')
    with pytest.raises(ValueError, match="CURRENT: not readable"):
        current_version(tmp_path)


def test_an_index_without_versions_stays_readable_and_is_not_mixed(tmp_path: Path) -> None:
    index_dir = tmp_path / "index"
    build(tmp_path, version=index_dir)
    assert current_version(index_dir) == index_dir
    with pytest.raises(ValueError, match="one index without versions"):
        new_version(index_dir)


def test_an_unfilled_version_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no index artifact here"):
        publish(new_version(tmp_path))
    assert states(tmp_path) == {"000001": "unpublished"}
    with pytest.raises(ValueError, match="no version 7; there are: 000001"):
        find_version(tmp_path, "7")


def _publish_forever(index_dir: Path) -> None:
    while True:
        publish(build(index_dir), keep=2)


def test_a_reader_finds_a_whole_index_while_a_writer_publishes_and_is_killed(tmp_path: Path) -> None:
    publish(build(tmp_path))
    for _ in range(3):
        writer = multiprocessing.get_context("fork").Process(target=_publish_forever, args=(tmp_path,))
        writer.start()
        end = time.monotonic() + 0.4
        reads = 0
        while time.monotonic() < end:
            try:
                open_artifact(current_version(tmp_path), "index")
            except ValueError:  # two publications later the folder is gone: the reader asks again
                open_artifact(current_version(tmp_path), "index")
            reads += 1
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert reads > 10
        open_artifact(current_version(tmp_path), "index").verify()
        assert json.loads((tmp_path / "CURRENT").read_text())["version"] == current_version(tmp_path).name
        publish(build(tmp_path), keep=2)
