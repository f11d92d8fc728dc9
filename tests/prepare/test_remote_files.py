"""Tables on object storage, read from servers of S3 and Google on loopback, give the dataset of the files on disk."""

from __future__ import annotations

import gzip
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from prepare_helpers import files_of, make_config
from pydantic import ValidationError

from mtmh.chain.stages import stages_of
from mtmh.config import load_config
from mtmh.data.raw_files import changed_since, stamp
from mtmh.places import RemotePath, any_path, find_files
from mtmh.prepare.prepare import prepare

DAYS = [f"2024-01-{day:02d}" for day in range(1, 8)]
SPLIT = {"kind": "user"}


def day_of_events(number: int) -> pa.Table:
    rng = np.random.default_rng(number)
    return pa.table(
        {
            "user_id": rng.integers(0, 60, 500),
            "item_id": rng.zipf(1.4, 500) % 50,
            "timestamp": number * 86_400 + np.sort(rng.integers(0, 86_400, 500)),
        }
    )


def items() -> bytes:
    lines = ["item_id,brand,price", *(f'{item},"b {item % 5}",{item / 4}' for item in range(50))]
    return ("\n".join(lines) + "\n").encode()


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A week of events in Hive folders, and the items, packed; with what shells and URLs take for special."""
    folder = tmp_path / "shop [old] 50% ?"
    for number, day in enumerate(DAYS):
        path = folder / "events" / f"day={day}" / "part 0#1.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(day_of_events(number), path)
    (folder / "items.csv.gz").write_bytes(gzip.compress(items()))
    return folder


def upload(folder: Path, to: RemotePath) -> RemotePath:
    pafs.copy_files(str(folder), to.path, destination_filesystem=to.filesystem)
    return to


def run(out: Path, data: dict[str, Any]) -> dict[str, bytes]:
    config = make_config(
        out,
        **{"items": ["items.csv.gz"], "id_features": ["brand"], "float_features": ["price"], "split": SPLIT, **data},
    )
    return files_of(prepare(config, out / "dataset").path)


def test_a_folder_on_s3_gives_the_dataset_of_the_folder_on_disk(tmp_path: Path, shop: Path, bucket: RemotePath) -> None:
    there = upload(shop, bucket / shop.name)
    on_disk = run(tmp_path / "a", {"input": shop, "events": ["events/**/*.parquet"]})
    assert len(on_disk) > 10
    assert run(tmp_path / "b", {"input": str(there), "events": ["events/**/*.parquet"]}) == on_disk
    # Patterns may be URLs themselves, as may be single files.
    plain = upload(shop, bucket / "plain")
    data = {"input": None, "events": [f"{plain}/events/day=*/*.parquet"], "items": [f"{plain}/items.csv.gz"]}
    assert run(tmp_path / "c", data) == on_disk
    assert run(tmp_path / "d", {"input": f"file://{shop}", "events": ["events/*/part 0#1.parquet"]}) == on_disk


def test_days_that_are_asked_for_are_all_that_is_opened(tmp_path: Path, shop: Path, bucket: RemotePath) -> None:
    middle = {"day": [DAYS[1], DAYS[4]]}
    # A file outside of the range that cannot be read does not matter; nor does Hive's folder of rows without a day.
    (shop / "events" / f"day={DAYS[6]}" / "part 0#1.parquet").write_bytes(b"broken")
    nothing = shop / "events" / "day=__HIVE_DEFAULT_PARTITION__" / "part 0#1.parquet"
    nothing.parent.mkdir()
    nothing.write_bytes(b"broken")
    there = upload(shop, bucket / "shop")
    data = {"events": ["events/*/*.parquet"], "partitions": ["day"], "partition_range": middle}
    on_disk = run(tmp_path / "a", {"input": shop, **data})
    assert run(tmp_path / "b", {"input": str(there), **data}) == on_disk
    chosen = {"events": [f"events/day={day}/*.parquet" for day in DAYS[1:5]]}
    assert run(tmp_path / "c", {"input": shop, **chosen}) == on_disk
    # A partition may be the events' time as well.
    pq.write_table(day_of_events(6), shop / "events" / f"day={DAYS[6]}" / "part 0#1.parquet")
    by_day = run(tmp_path / "d", {"input": shop, **data, "columns": {"timestamp": "day"}})
    assert by_day != on_disk


@pytest.mark.parametrize(
    ("names", "ends", "kept"),
    [
        (["9", "10", "11"], [9, 10], ["9", "10"]),
        (["09", "10", "11"], ["09", "10"], ["09", "10"]),
        (["a", "b", "c"], ["b", "z"], ["b", "c"]),
    ],
)
def test_ends_of_a_range_are_numbers_or_text(
    tmp_path: Path, names: list[str], ends: list[Any], kept: list[str]
) -> None:
    for number, name in enumerate(names):
        path = tmp_path / f"hour={name}" / "e.parquet"
        path.parent.mkdir()
        pq.write_table(day_of_events(number), path)
    data: dict[str, Any] = {
        "input": tmp_path,
        "partitions": ["hour"],
        "items": [],
        "id_features": [],
        "float_features": [],
    }
    some = run(tmp_path / "a", {**data, "events": ["*/e.parquet"], "partition_range": {"hour": ends}})
    assert some == run(tmp_path / "b", {**data, "events": [f"hour={name}/e.parquet" for name in kept]})
    with pytest.raises(
        ValueError, match=r"data\.partition_range\.hour: no file of 3 lies between 70 and 80|is no integer"
    ):
        run(tmp_path / "c", {**data, "events": ["*/e.parquet"], "partition_range": {"hour": [70, 80]}})
    with pytest.raises(ValidationError, match=r"partition_range\.day: no partition"):
        run(tmp_path / "d", {**data, "events": ["*/e.parquet"], "partition_range": {"day": [1, 2]}})


def test_faults_name_the_file_and_its_place(tmp_path: Path, shop: Path, bucket: RemotePath) -> None:
    there = upload(shop, bucket / "shop")
    with pytest.raises(ValueError, match=r"data\.events: no file s3://b-\w+/shop/nothing/\*\.parquet"):
        run(tmp_path / "a", {"input": str(there), "events": ["nothing/*.parquet"]})
    broken = there / "events" / f"day={DAYS[3]}" / "part 0#1.parquet"
    with broken.filesystem.open_output_stream(broken.path) as file:
        file.write(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"s3://b-\w+/shop/events/day=2024-01-04/part 0#1\.parquet: cannot be read"):
        run(tmp_path / "a", {"input": str(there), "events": ["events/*/*.parquet"]})
    with broken.filesystem.open_output_stream(broken.path) as file:
        pq.write_table(day_of_events(3).drop_columns("user_id"), file)
    with pytest.raises(
        ValueError, match=r"s3://b-\w+/shop/events/day=2024-01-04/part 0#1\.parquet: no column 'user_id'"
    ):
        run(tmp_path / "a", {"input": str(there), "events": ["events/*/*.parquet"]})
    with pytest.raises(ValueError, match=r"s3://no-such-bucket.* cannot be reached|no file s3://no-such"):
        run(tmp_path / "a", {"input": "s3://no-such-bucket", "events": ["events/*/*.parquet"]})
    with pytest.raises(ValidationError, match="unknown kind of place; expected a path or s3, gs"):
        run(tmp_path / "a", {"input": "ftp://host/x", "events": ["e.csv"]})
    assert not (tmp_path / "a" / "dataset").exists()


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemotePath]:
    """A bucket of Google's storage, by its emulator on loopback, which the environment names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = f"b-{uuid.uuid4().hex[:12]}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    command = [str(Path(sys.executable).parent / "gcp-storage-emulator"), "start", "--host=127.0.0.1", f"--port={port}"]
    with (tmp_path / "emulator.log").open("wb") as log:
        server = subprocess.Popen([*command, "--in-memory", f"--default-bucket={name}"], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while "started" not in (tmp_path / "emulator.log").read_text():
            assert time.monotonic() < end
            assert server.poll() is None, (tmp_path / "emulator.log").read_text()
            time.sleep(0.1)
        yield RemotePath(f"gs://{name}")
    finally:
        server.terminate()
        server.wait()


def test_a_folder_on_google_s_storage_gives_the_dataset_of_the_folder_on_disk(
    tmp_path: Path, shop: Path, google: RemotePath
) -> None:
    there = upload(shop, google / "shop")
    on_disk = run(tmp_path / "a", {"input": shop, "events": ["events/**/*.parquet"]})
    assert run(tmp_path / "b", {"input": str(there), "events": ["events/**/*.parquet"]}) == on_disk
    days = {"partitions": ["day"], "partition_range": {"day": [DAYS[1], DAYS[4]]}, "events": ["events/*/*.parquet"]}
    assert run(tmp_path / "c", {"input": str(there), **days}) == run(tmp_path / "d", {"input": shop, **days})
    with pytest.raises(ValueError, match=r"data\.events: no file gs://b-\w+/shop/nothing/\*\.parquet"):
        run(tmp_path / "e", {"input": str(there), "events": ["nothing/*.parquet"]})


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("gs://shop/below", "cannot be reached: .*credentials"),
        ("abfs://shop@account.dfs.core.windows.net", "cannot be reached: nothing says who asks: set AZURE_STORAGE"),
        ("hdfs://127.0.0.1:1", "cannot be reached: "),
    ],
)
def test_a_store_without_its_credentials_or_libraries_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, said: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
    for name in [name for name in os.environ if name.startswith(("AZURE_", "IDENTITY_", "MSI_", "STORAGE_"))]:
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=rf"data\.events: {place}/events/\*\.parquet {said}"):
        run(tmp_path / "a", {"input": place, "events": ["events/*.parquet"]})


def test_the_named_sources_read_their_files_from_s3(tmp_path: Path, bucket: RemotePath) -> None:
    lines = ["userId,movieId,rating,timestamp"]
    lines += [f"{user},{(user * 3 + step * 7) % 40},{3 + step % 3},{step}" for user in range(30) for step in range(12)]
    folder = tmp_path / "movies"
    folder.mkdir()
    (folder / "ratings.csv").write_text("\n".join(lines))
    titles = [f'{movie},"Title, {movie} ({1950 + movie})",Drama|War' for movie in range(40)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *titles]))
    there = upload(folder, bucket / "movies")
    made: list[dict[str, bytes]] = []
    for place in (str(folder), str(there)):
        config = load_config("movielens", [f"data.input={place}", f"paths.root={tmp_path}/{len(made)}"])
        made.append(files_of(prepare(config, config.dataset_dir).path))
    assert made[0] == made[1]


def test_a_changed_object_makes_the_dataset_outdated(tmp_path: Path, shop: Path, bucket: RemotePath) -> None:
    there = upload(shop, bucket / "shop")
    whole = stamp([there])
    assert stamp([there]) == whole
    assert changed_since([there], 0.0) is not None
    assert changed_since([there], 4e9) is None
    with (there / "more.csv").filesystem.open_output_stream((there / "more.csv").path) as file:
        file.write(b"1")
    assert stamp([there]) != whole
    config = make_config(tmp_path, input=None, events=[f"{there}/events/*/*.parquet"])
    assert len(next(stage for stage in stages_of(config) if stage.name == "prepare").files(config)) == len(DAYS)


def test_urls_are_taken_as_they_are_written(bucket: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    assert any_path("/a//b") == Path("/a/b")
    assert any_path("file:///a b/%20") == Path("/a b/%20")
    assert any_path("s3://x/a//b%20c/") == RemotePath("s3://x/a//b%20c")
    assert RemotePath("s3://x/a//b%20c").path == "x/a//b%20c"
    assert os.fspath(Path("s3://x")) == "s3:/x", "which is why URLs are no Path"
    for name in ("a*.csv", "ab.csv", ".hidden.csv", "deep/er/ab.csv"):
        with bucket.filesystem.open_output_stream((bucket / name).path) as file:
            file.write(b"1")

    def names(pattern: str) -> list[str]:
        return [str(file).removeprefix(f"{bucket}/") for file in find_files(None, RemotePath(f"{bucket}/{pattern}"))]

    assert names("a*.csv") == ["a*.csv"]
    assert names("*.csv") == ["a*.csv", "ab.csv"]
    assert names("**/ab.csv") == ["ab.csv", "deep/er/ab.csv"]
    assert names("deep/**/*.csv") == ["deep/er/ab.csv"]
    listed: list[str] = []
    files = RemotePath.files

    def listing(place: RemotePath) -> list[pafs.FileInfo]:
        listed.append(str(place))
        return files(place)

    monkeypatch.setattr(RemotePath, "files", listing)
    assert find_files(bucket, Path("deep/er/*.csv")) == [bucket / "deep/er/ab.csv"]
    assert listed == [f"{bucket}/deep/er"], "nothing is listed of what lies beside it"


def test_a_path_on_hdfs_is_seen_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hadoop:
        @staticmethod
        def from_uri(url: str) -> tuple[pafs.FileSystem, str]:
            assert url == "hdfs://namenode:8020/"
            return pafs.LocalFileSystem(), "/"  # which is what pyarrow gives

    monkeypatch.setattr(pafs, "FileSystem", Hadoop)
    (tmp_path / "events.csv").touch()
    file = RemotePath(f"hdfs://namenode:8020{tmp_path}/events.csv")
    assert file.path == f"{tmp_path}/events.csv"
    assert file.is_file()


def test_an_account_of_azure_that_is_not_that_of_the_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=other;AccountKey=a2V5")
    with pytest.raises(OSError, match=r"of the account other, the URL names account\.dfs"):
        RemotePath("abfs://shop@account.dfs.core.windows.net/events.parquet").info()
    assert RemotePath("abfs://shop@other.dfs.core.windows.net/events.parquet").path == "shop/events.parquet"


@pytest.mark.parametrize(
    ("endpoint", "suffix", "scheme"),
    [
        ("https://mine.blob.core.windows.net/", ".{}.core.windows.net", "https"),  # as `az` shows it
        ("https://mine.blob.core.chinacloudapi.cn", ".{}.core.chinacloudapi.cn", "https"),
        ("http://127.0.0.1:10000/mine", "127.0.0.1:10000", "http"),
    ],
)
def test_a_connection_string_says_where_azure_is(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, suffix: str, scheme: str
) -> None:
    words = f"AccountName=mine;AccountKey=a2V5;BlobEndpoint={endpoint};QueueEndpoint=https://x"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", words)
    found = RemotePath(f"abfs://c-{uuid.uuid4().hex}@mine.dfs.core.windows.net").filesystem
    assert found == pafs.AzureFileSystem(
        "mine",
        account_key="a2V5",
        blob_storage_authority=suffix.format("blob"),
        dfs_storage_authority=suffix.format("dfs"),
        blob_storage_scheme=scheme,
        dfs_storage_scheme=scheme,
    )
