"""Values are kept as they are, or counted, or refused with file and column: a case for each kind of fault.

Those of pictures stand in tests/content/test_images_of_items.py.
"""

from __future__ import annotations

import datetime as dt
import gzip
import json
import logging
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepare_helpers import Written, files_of, make_config, prepare_tables

from mtmh.artifacts import Artifact
from mtmh.config import load_config
from mtmh.data.dataset import open_dataset
from mtmh.data.ids import clean_text, sql_clean_text
from mtmh.data.schema import FARTHEST, ITEM_TABLE, FloatScale, vocabulary_file
from mtmh.errors import RequestError
from mtmh.prepare.prepare import prepare
from mtmh.tower.item_features import ItemFeatures, write_features

USERS, ITEMS, STEPS = 10, 7, 6
GRID = [(user, (user + step) % ITEMS, step) for user in range(USERS) for step in range(STEPS)]


def run(folder: Path, **data: Any) -> Artifact:
    settings = {"events": ["events.*"], "split": {"kind": "user"}, **data}
    return prepare(make_config(folder, **settings), folder / "dataset")


def write_csv(folder: Path, rows: Sequence[Sequence[Any]], name: str = "events.csv", head: str = "") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [head or "user_id,item_id,timestamp", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def write_parquet(folder: Path, columns: dict[str, Any], name: str = "events.parquet") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def grid(user: Any = None, item: Any = None, time: Any = None) -> dict[str, Any]:
    """The grid as columns, each through a function or an Arrow type."""

    def column(values: list[int], change: Any) -> Any:
        if change is None:
            return values
        return pa.array(values, change) if isinstance(change, pa.DataType) else change(values)

    users, items, times = (list(values) for values in zip(*GRID, strict=True))
    return {"user_id": column(users, user), "item_id": column(items, item), "timestamp": column(times, time)}


def item_ids(artifact: Artifact) -> set[Any]:
    return set(Written.read(artifact.path).item_ids)


# Ids -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        ["0000000049", "49", "0049", "7", "8", "9", "10"],
        ["12345678901234567890", "12345678901234567891", "3", "4", "5", "6", "7"],
        ["+4917", "4917", "3", "4", "5", "6", "7"],
        ["12e1", "120", "120.0", "4", "5", "6", "7"],
        ["2000-01-02", "2000-01-03", "2000-01-04", "2000-01-05", "2000-01-06", "2000-01-07", "2000-01-08"],
        ["1.5", "2.5", "3.5", "4", "5", "6", "7"],
    ],
)
def test_ids_of_csv_are_integers_only_where_nothing_is_lost(tmp_path: Path, ids: list[str]) -> None:
    write_csv(tmp_path, [(ids[user % ITEMS], ids[item], step) for user, item, step in GRID])
    artifact = run(tmp_path)
    written = Written.read(artifact.path)
    assert set(written.item_ids) == set(ids)
    assert set(written.histories) == set(ids)
    write_csv(tmp_path, [(item, ids[item]) for item in range(ITEMS)], "items.csv", "item_id,code")
    write_csv(tmp_path, GRID)
    run(tmp_path, items=["items.csv"], id_features=["code"])
    assert set(pq.read_table(tmp_path / "dataset" / vocabulary_file("code"))["value"].to_pylist()) == set(ids)


@pytest.mark.parametrize(
    "kind",
    [
        pa.int8(),
        pa.int16(),
        pa.uint8(),
        pa.uint32(),
        pa.uint64(),
        pa.decimal128(20, 0),
        pa.decimal128(20, 2),
        pa.float64(),
        pa.float32(),
    ],
)
def test_whole_numbers_of_any_type_are_64_bit_integers(tmp_path: Path, kind: pa.DataType) -> None:
    write_parquet(tmp_path, grid(kind, kind))
    artifact = run(tmp_path)
    write_parquet(tmp_path, grid())
    assert files_of(artifact.path) == files_of(
        prepare(make_config(tmp_path, events=["events.*"], split={"kind": "user"}), tmp_path / "plain").path
    )


def test_unsigned_ids_beyond_64_bits_with_a_sign_are_kept_as_text(tmp_path: Path) -> None:
    large = 2**64 - 1
    write_parquet(tmp_path, grid(item=lambda items: pa.array([large - item for item in items], pa.uint64())))
    assert item_ids(run(tmp_path)) == {str(large - item) for item in range(ITEMS)}
    # The items file may have them in another form.
    write_csv(tmp_path, [(large - item,) for item in range(ITEMS)], "items.csv", "item_id")
    assert item_ids(run(tmp_path, items=["items.csv"])) == {str(large - item) for item in range(ITEMS)}


@pytest.mark.parametrize(
    ("values", "odd"),
    [
        (pa.array([0.5] * len(GRID)), "0.5 is no whole number"),
        (pa.array([2.0**53] * len(GRID)), r"9007199254740992\.0 is no whole number below 9,007,199,254,740,992"),
        (pa.array([Decimal("1.50")] * len(GRID)), r"1\.50 is no whole number"),
    ],
)
def test_numbers_that_are_no_ids_are_refused_with_one_of_them(tmp_path: Path, values: pa.Array, odd: str) -> None:
    write_parquet(tmp_path, {**grid(), "user_id": values})
    with pytest.raises(ValueError, match=rf"events\.parquet: column 'user_id' holds .*: {odd}"):
        run(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_words_for_nothing_are_no_user(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    words = ["NULL", "nan", "None", "", "  "]
    rows = [(f"u{user}", f"i{item}", step) for user, item, step in GRID]
    rows += [(words[step % 5], f"i{step % ITEMS}", step) for step in range(50)]
    if kind == "csv":
        write_csv(tmp_path, rows)
    else:
        users, items, times = zip(*rows, strict=True)
        write_parquet(tmp_path, {"user_id": users, "item_id": items, "timestamp": times})
    with caplog.at_level(logging.WARNING):
        artifact = run(tmp_path)
    assert artifact.summary["dropped_events"]["no_user"] == 50
    assert set(Written.read(artifact.path).histories) == {f"u{user}" for user in range(USERS)}
    assert "50 of 110 events are left out: no user" in caplog.text
    # Someone may really be called so.
    kept = Written.read(run(tmp_path, missing_words=[]).path)
    assert {"NULL", "nan", "None"} <= set(kept.histories)


def test_words_for_nothing_among_numbers_are_missing_numbers(tmp_path: Path) -> None:
    write_csv(tmp_path, [*GRID, (1, "NULL", 3), (1, 2, "NaN")])
    prices = ["N/A", *(f"{item}.5" for item in range(1, ITEMS))]
    write_csv(tmp_path, list(enumerate(prices)), "items.csv", "item_id,price")
    artifact = run(tmp_path, items=["items.csv"], float_features=["price"])
    assert {"no_item": 1, "no_timestamp": 1}.items() <= artifact.summary["dropped_events"].items()
    assert item_ids(artifact) == set(range(ITEMS))


# Columns and files ---------------------------------------------------------------------------------------------------


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table(grid()).append_column("User_ID", pa.array([9] * len(GRID)))
    pq.write_table(table, tmp_path / "events.parquet")
    with pytest.raises(
        ValueError, match=r"events\.parquet: two columns are named 'user_id', upper and lower case aside"
    ):
        run(tmp_path)
    pq.write_table(pa.table(grid()).append_column("item_id", pa.array([9] * len(GRID))), tmp_path / "events.parquet")
    with pytest.raises(ValueError, match="two columns are named 'item_id'"):
        run(tmp_path)
    # The engine's own names for the second one are no names.
    with pytest.raises(ValueError, match="no column 'item_id_1'"):
        run(tmp_path, columns={"item_id": "item_id_1"})
    (tmp_path / "events.parquet").unlink()
    write_csv(tmp_path, [(1, 2, 3, 4)], head="user_id,USER_ID,item_id,timestamp")
    with pytest.raises(ValueError, match=r"events\.csv: expected distinct column names in the first line"):
        run(tmp_path)


@pytest.mark.parametrize("name", ["events[1].csv", "e?.csv", "e*.csv", "[ab].csv"])
def test_a_file_s_own_name_is_no_pattern(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "shop [old]?" / "*"
    write_csv(folder, GRID, name)
    for other in ("events1.csv", "ex.csv", "a.csv"):
        write_csv(folder, [(1, 2, 3), (1, 3, 4)], other)
    artifact = run(folder, events=[name])
    assert artifact.summary["num_events_read"] == len(GRID)
    artifact = run(folder, events=["*.csv"])
    assert artifact.summary["num_events_read"] == len(GRID) + 6


def test_a_question_mark_in_the_path_of_the_artifact(tmp_path: Path) -> None:
    root = tmp_path / "a ? [b]" / "user_id=4"
    config = make_config(
        root, source="synthetic", input=None, options={"num_users": 50, "num_items": 30, "num_events": 900}
    )
    assert prepare(config, root / "dataset").summary["num_users"] > 10
    assert [path.name for path in root.iterdir()] == ["dataset"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_of_folders_are_no_columns(tmp_path: Path, suffix: str) -> None:
    name = f"timestamp=2023-11-14/brand=acme/user_id=4/e.{suffix}"
    if suffix == "csv":
        write_csv(tmp_path, GRID, name)
    else:
        write_parquet(tmp_path, grid(), name)
    artifact = run(tmp_path, events=["**/e.*"])
    assert len(Written.read(artifact.path).histories) == USERS
    assert not artifact.summary["timestamp_is_date"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_of_folders_are_columns_by_request(tmp_path: Path, suffix: str) -> None:
    plain, folders = tmp_path / "plain", tmp_path / "folders"
    write_parquet(plain, grid(item=lambda items: [f"a b/{item}" for item in items]))
    for item in range(ITEMS):
        rows = [(user, time) for user, of_row, time in GRID if of_row == item]
        name = f"item_id=a%20b%2F{item}/e.{suffix}"
        if suffix == "csv":
            write_csv(folders, rows, name, "user_id,timestamp")
        else:
            users, times = zip(*rows, strict=True)
            write_parquet(folders, {"user_id": users, "timestamp": times}, name)
    artifact = run(folders, events=["*/e.*"], partitions=["item_id"])
    assert files_of(artifact.path) == files_of(run(plain).path)
    with pytest.raises(ValueError, match=r"e\.\w+: lies in no folder day=\.\.\., as data\.partitions says"):
        run(folders, events=["*/e.*"], partitions=["item_id", "day"])
    with pytest.raises(ValueError, match=r"has a column 'user_id', which data\.partitions expects in names of folders"):
        run(folders, events=["*/e.*"], partitions=["user_id"])


def two_files(folder: Path, first: dict[str, Any], second: dict[str, Any]) -> None:
    write_parquet(folder, first, "events.1.parquet")
    write_parquet(folder, second, "events.2.parquet")


@pytest.mark.parametrize("order", [1, -1])
def test_types_that_differ_between_files_hold_all_values_or_are_refused(tmp_path: Path, order: int) -> None:
    day = dt.datetime(2023, 11, 14)

    def dates(times: list[int]) -> pa.Array:
        return pa.array([day.date()] * len(times))

    def moments(times: list[int]) -> pa.Array:
        return pa.array([day + dt.timedelta(hours=time) for time in times])

    two_files(tmp_path, *[grid(time=dates), grid(time=moments)][::order])
    written = Written.read(run(tmp_path).path)
    hours = {(time - 1_699_920_000) / 3600 for history in written.histories.values() for _, time in history}
    assert hours == {0, 1, 2, 3}, "times are not cut to days"

    two_files(tmp_path, *[grid(pa.int32()), grid(pa.int64())][::order])
    assert len(Written.read(run(tmp_path).path).histories) == USERS

    two_files(tmp_path, *[grid(), grid(lambda users: [str(user) for user in users])][::order])
    with pytest.raises(
        ValueError, match=r"column 'user_id' is (BIGINT|VARCHAR) in .*1\.parquet, (BIGINT|VARCHAR) in .*2\.parquet"
    ):
        run(tmp_path)

    two_files(tmp_path, *[grid(), grid(lambda users: [user + 0.5 for user in users])][::order])
    with pytest.raises(ValueError, match=r"column 'user_id' holds DOUBLE, .*: 0\.5 is no whole number"):
        run(tmp_path)

    two_files(tmp_path, *[grid(lambda users: [2**53 + 1 + user for user in users]), grid(pa.float64())][::order])
    with pytest.raises(ValueError, match="is no whole number below"):
        run(tmp_path)

    zoned = pa.timestamp("us", "UTC")
    two_files(tmp_path, *[grid(time=moments), grid(time=lambda times: moments(times).cast(zoned))][::order])
    with pytest.raises(ValueError, match=r"column 'timestamp' is TIMESTAMP.* in .*, TIMESTAMP"):
        run(tmp_path)


@pytest.mark.parametrize("order", [1, -1])
def test_prices_in_integers_and_in_floats(tmp_path: Path, order: int) -> None:
    write_parquet(tmp_path, grid())
    # A float of 32 bits, the common type of the two, does not hold the integer.
    whole, parts = (
        {"item_id": [0, 1], "price": pa.array([2**24 + 1, 2], pa.int32())},
        {
            "item_id": [2, 3, 4, 5, 6],
            "price": pa.array([0.25, 0.5, 0.75, 1.0, 2.0], pa.float32()),
        },
    )
    for number, columns in enumerate([whole, parts][::order]):
        write_parquet(tmp_path, columns, f"items.{number}.parquet")
    run(tmp_path, items=["items.*.parquet"], float_features=["price"], popularity_features=False)
    scale = json.loads((tmp_path / "dataset" / ITEM_TABLE / "float_features.json").read_text())["features"][0]
    assert scale["mean"] == np.mean([2**24 + 1, 2, 0.25, 0.5, 0.75, 1.0, 2.0])


def test_a_column_that_one_file_lacks_is_refused(tmp_path: Path) -> None:
    two_files(tmp_path, grid(), {"user_id": [1], "item_id": [2], "TimeStamp": [3]})
    with pytest.raises(
        ValueError, match=r"events\.2\.parquet: no column 'timestamp', which others of these files have"
    ):
        run(tmp_path)


# Times ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column",
    [
        lambda ticks: pa.array([1_700_000_000_000 + 100 * tick for tick in ticks], pa.timestamp("ms")),
        lambda ticks: pa.array([1_700_000_000_000_000_000 + tick for tick in ticks], pa.timestamp("ns")),
        lambda ticks: pa.array([1_700_000_000 + tick / 10 for tick in ticks]),
        lambda ticks: pa.array([19_675.5 + tick / 864_000 for tick in ticks]),
        lambda ticks: pa.array([Decimal(17_000_000_000 + tick) / 10 for tick in ticks], pa.decimal128(20, 1)),
        lambda ticks: pa.array([-100 * tick for tick in reversed(ticks)], pa.timestamp("ms")),
    ],
)
def test_events_keep_their_order_whatever_their_clock(tmp_path: Path, column: Any) -> None:
    rng = np.random.default_rng(0)
    items = [rng.permutation(9).tolist() for _ in range(15)]
    write_parquet(
        tmp_path,
        {
            "user_id": [user for user in range(15) for _ in range(9)],
            "item_id": [item for history in items for item in history],
            "timestamp": column(list(range(9)) * 15),
        },
    )
    written = Written.read(run(tmp_path).path)
    for user, history in enumerate(items):
        whole = [*written.histories[user], *written.test[user]]
        assert [item for item, _ in whole] == history
        assert [time for _, time in whole] == sorted(time for _, time in whole)


@pytest.mark.parametrize(("cutoff", "as_date"), [("2023-11-14T22:13:20.500", True), (1_700_000_000.5, False)])
def test_the_cut_falls_between_two_events_of_one_second(tmp_path: Path, cutoff: Any, as_date: bool) -> None:
    tenths = [0, 2, 4, 5, 7]
    times = (
        pa.array([1_700_000_000_000 + 100 * tenth for tenth in tenths] * 3, pa.timestamp("ms"))
        if as_date
        else pa.array([1_700_000_000 + tenth / 10 for tenth in tenths] * 3)
    )
    write_parquet(tmp_path, {"user_id": np.repeat(range(3), 5), "item_id": list(range(5)) * 3, "timestamp": times})
    artifact = run(tmp_path, split={"kind": "time", "cutoff": cutoff})
    written = Written.read(artifact.path)
    assert [[item for item, _ in history] for history in written.histories.values()] == [[0, 1, 2]] * 3
    assert [[item for item, _ in items] for items in written.test.values()] == [[3, 4]] * 3
    assert artifact.summary["cutoff"] == 1_700_000_000.5
    assert artifact.summary["train_end"] == 1_700_000_001


def test_zones_of_times_in_csv_count(tmp_path: Path) -> None:
    moments = ["2023-11-15T15:32:05+02:00", "2023-11-15T14:00:00Z", "2023-11-15T09:30:00.5-0500"]
    write_csv(tmp_path, [(user, item, moments[item]) for user in range(4) for item in range(3)])
    written = Written.read(run(tmp_path).path)
    assert [*written.histories[0], *written.test[0]] == [(0, 1_700_055_125), (1, 1_700_056_800), (2, 1_700_058_600)]
    write_csv(tmp_path, [(1, 2, "2023-11-15T15:32:05+02:00"), (1, 3, "2023-11-15T15:32:05")])
    with pytest.raises(ValueError, match=r"events\.csv: column 'timestamp' holds times with and without a zone"):
        run(tmp_path)


# Features ------------------------------------------------------------------------------------------------------------


def with_items(folder: Path, head: str, rows: Sequence[Sequence[Any]], **data: Any) -> Artifact:
    write_csv(folder, GRID)
    write_csv(folder, rows, "items.csv", head)
    return run(folder, items=["items.csv"], **data)


@pytest.mark.parametrize(
    ("cells", "data"),
    [
        (['"[""red"",""small""]"', "[]", '"["" small "",null]"', '"[""red""]"', "", '["red"]', '["blue"]'], {}),
        (["red|small", "", " small |", "red", "NULL", "red", "blue"], {"columns": {"separators": {"tags": "|"}}}),
    ],
)
def test_lists_in_csv(tmp_path: Path, cells: list[str], data: dict[str, Any]) -> None:
    with_items(tmp_path, "item_id,tags", list(enumerate(cells)), id_features=["tags"], **data)
    assert vocabulary(tmp_path, "tags") == {"blue", "red", "small"}
    numbers = [cell.replace("red", "1").replace("small", "22").replace("blue", "3") for cell in cells]
    with_items(tmp_path, "item_id,tags", list(enumerate(numbers)), id_features=["tags"], **data)
    assert vocabulary(tmp_path, "tags") == {1, 22, 3}


def vocabulary(folder: Path, feature: str) -> set[Any]:
    return set(pq.read_table(folder / "dataset" / vocabulary_file(feature))["value"].to_pylist())


@pytest.mark.parametrize("cells", [["['red']"] * ITEMS, ['["red"]'] * (ITEMS - 1) + ["red"]])
def test_text_that_looks_like_lists_and_is_none_is_refused(tmp_path: Path, cells: list[str]) -> None:
    with pytest.raises(ValueError, match=r"items\.csv: column 'tags' holds lists that are not all JSON arrays"):
        with_items(tmp_path, "item_id,tags", list(enumerate(cells)), id_features=["tags"])


def test_equal_prices_tell_nothing_and_a_far_one_does_not_drown_the_others(tmp_path: Path) -> None:
    equal = FloatScale.measured("price", np.full(233, 14.62))
    assert equal.deviation == 0.0
    assert equal.standardise(np.array([14.62, 19.99, np.nan])).tolist() == [0.0, 0.0, 0.0]
    near = FloatScale.measured("price", np.array([14.62] * 200 + [14.63]))
    assert near.standardise(np.array([14.62, 19.99, -1e9])).tolist() == [
        near.standardise(np.array([14.62]))[0],
        FARTHEST,
        -FARTHEST,
    ]
    with_items(tmp_path, "item_id,price", [(item, 14.62) for item in range(ITEMS)], float_features=["price"])
    floats = np.load(tmp_path / "dataset" / ITEM_TABLE / "float_features.npy", allow_pickle=False)
    assert (floats[:, 0] == 0.0).all()


@pytest.mark.parametrize("price", ["1.797e308", "1e39", "-1.797e308", "inf", "nan"])
def test_prices_of_any_size_are_finite_inputs_everywhere(tmp_path: Path, price: str) -> None:
    prices = [price, *range(1, ITEMS)]
    with_items(tmp_path, "item_id,price", list(enumerate(prices)), float_features=["price"], popularity_features=False)
    floats = np.load(tmp_path / "dataset" / ITEM_TABLE / "float_features.npy", allow_pickle=False)
    assert np.isfinite(floats).all()
    assert (np.abs(floats) <= FARTHEST).all()
    # A fresh item and a request go the same way.
    features = live_features(tmp_path, float_features=["price"])
    dense = features.encode(features.table([{"item_id": 99, "price": 1.797e308}, {"item_id": 98, "price": -1e39}]))[2]
    assert np.isfinite(dense).all()
    assert (np.abs(dense) <= FARTHEST).all()
    with pytest.raises(RequestError, match="price is inf, expected a finite number"):
        features.table([{"item_id": 99, "price": float("inf")}])


def live_features(folder: Path, **data: Any) -> ItemFeatures:
    with_items(folder, "item_id,price,brand", [(item, item, f"b{item % 3}  ") for item in range(ITEMS)], **data)
    (folder / "tower").mkdir(exist_ok=True)
    write_features(folder / "tower", open_dataset(folder / "dataset"), 1)
    return ItemFeatures(folder / "tower")


def test_spaces_around_a_category_are_no_part_of_it_in_prepare_and_live(tmp_path: Path) -> None:
    brands = [["b1      ", " b2"], ["b1"], ["", "b2\u00a0"], [" "], ["b2"], None, ["b1", "b1 "]]
    write_parquet(tmp_path, grid())
    write_parquet(tmp_path, {"item_id": list(range(ITEMS)), "brand": brands}, "items.parquet")
    run(tmp_path, items=["items.parquet"], id_features=["brand"])
    assert vocabulary(tmp_path, "brand") == {"b1", "b2"}
    features = live_features(tmp_path / "live", id_features=["brand"])
    rows = [{"item_id": 99, "brand": brand} for brand in ("b1      ", "b1", ["b1 ", "\u00a0b1"], " ", None)]
    values, lengths, _ = features.encode(features.table(rows))
    assert lengths[1].tolist() == [1] * 5
    assert len(set(values[-5:-2].tolist())) == 1
    assert values[-5] > 0
    assert values[-2:].tolist() == [0, 0]


@given(st.text(alphabet=st.one_of(st.characters(categories=["Zs", "Cc", "Lu"], exclude_characters="\x00"))))
def test_python_and_sql_take_the_same_spaces_off(text: str) -> None:
    ((cleaned,),) = duckdb.execute(f"SELECT {sql_clean_text('$1::VARCHAR')}", [text]).fetchall()
    assert cleaned == clean_text(text)


# Recipes -------------------------------------------------------------------------------------------------------------


def recipe(folder: Path, data: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(f"name: r\npaths: {{root: {folder}}}\ndata:\n  source: tables\n{data}")
    return path


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path, "  max_history: 3\n  max_history: 4\n")
    with pytest.raises(ValueError, match=r"key 'max_history' stands twice, first[\s\S]*line 5[\s\S]*line 6"):
        load_config(path)


def test_dates_and_words_of_a_recipe_are_text(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        "  split: {cutoff: 2023-11-15}\n  options: {keep_events: [on, off, no, 12:30, 2023-11-15T08:30:00]}\n"
        "  popularity_features: no\n  threads: 010\n  memory_limit_gb: 1e-1\n",
    )
    data = load_config(path, ["data.split.cutoff=2024-01-31"]).data
    assert load_config(path).data.split.cutoff == "2023-11-15"
    assert data.split.cutoff == "2024-01-31"
    assert data.options == {"keep_events": ["on", "off", "no", "12:30", "2023-11-15T08:30:00"]}
    assert (data.popularity_features, data.threads, data.memory_limit_gb) == (False, 10, 0.1)
    with pytest.raises(ValueError, match=r"data\.on: no such setting"):
        load_config(recipe(tmp_path, "  on: 3\n"))


# What to look at -----------------------------------------------------------------------------------------------------


def test_events_of_unknown_items_a_giant_user_and_a_vocabulary_of_unique_values_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events = [(user, (7 * user + 3 * step) % 150, step) for user in range(100) for step in range(8)]
    events += [(1000, step % 150, step) for step in range(300)]
    with caplog.at_level(logging.WARNING):
        prepare_tables(
            tmp_path,
            [*events, *((user, 999, 50) for user in range(60))],
            {
                "item_id": list(range(150)),
                "serial": [f"s{item}" for item in range(150)],
                "shelf": [item % 5 for item in range(150)],
            },
            split={"kind": "user"},
            id_features=["serial", "shelf"],
        )
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert said[0] == "60 of 1,160 events are left out: unknown item"
    assert said[1].startswith("user 1000 has 300 of 1,100 events")
    assert said[2].startswith("id feature serial: 150 values for 150 items of the training period")


# Every form that is promised -----------------------------------------------------------------------------------------

NUM_EVENTS = 2000
START = 1_700_000_000


def two_thousand() -> tuple[list[int], list[int], list[int]]:
    rng = np.random.default_rng(5)
    users, items = rng.integers(0, 120, NUM_EVENTS), rng.zipf(1.3, NUM_EVENTS) % 90
    return users.tolist(), items.tolist(), (START + rng.integers(0, 10**6, NUM_EVENTS)).tolist()


def iso(time: int, hours: int = 0, suffix: str = "") -> str:
    return (dt.datetime.fromtimestamp(time, dt.UTC) + dt.timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S") + suffix


ID_FORMS: dict[str, Any] = {
    "int64": pa.int64(),
    "int32": pa.int32(),
    "uint64": pa.uint64(),
    "decimal": pa.decimal128(12, 0),
    "double": pa.float64(),
}
TIME_FORMS: dict[str, Any] = {
    "int64": lambda times: pa.array(times),
    "uint32": lambda times: pa.array(times, pa.uint32()),
    "double": lambda times: pa.array(times, pa.float64()),
    "s": lambda times: pa.array(times, pa.timestamp("s")),
    "ms": lambda times: pa.array([1000 * time for time in times], pa.timestamp("ms")),
    "us": lambda times: pa.array([10**6 * time for time in times], pa.timestamp("us")),
    "ns": lambda times: pa.array([10**9 * time for time in times], pa.timestamp("ns")),
    "zoned": lambda times: pa.array([10**6 * time for time in times], pa.timestamp("us", "Asia/Tokyo")),
    "zoned ns": lambda times: pa.array([10**9 * time for time in times], pa.timestamp("ns", "UTC")),
}
CSV_TIMES: dict[str, Any] = {
    "number": str,
    "float": lambda time: f"{time}.0",
    "text": iso,
    "space": lambda time: iso(time).replace("T", " "),
    "utc": lambda time: iso(time, suffix="Z"),
    "offset": lambda time: iso(time, 2, "+02:00") if time % 2 else iso(time, -5, "-05:00"),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected")
    users, items, times = two_thousand()
    write_parquet(folder, {"user_id": users, "item_id": items, "timestamp": times})
    return files_of(run(folder, split={"kind": "time"}).path)


def same(folder: Path, expected: dict[str, bytes], **data: Any) -> bool:
    return files_of(run(folder, **{"split": {"kind": "time"}, **data}).path) == expected


@pytest.mark.parametrize("id_form", ID_FORMS)
@pytest.mark.parametrize("time_form", ["int64", "us"])
def test_every_type_of_ids_gives_one_dataset(
    tmp_path: Path, expected: dict[str, bytes], id_form: str, time_form: str
) -> None:
    users, items, times = two_thousand()
    kind = ID_FORMS[id_form]
    columns = {
        "user_id": pa.array(users, kind),
        "item_id": pa.array(items, kind),
        "timestamp": TIME_FORMS[time_form](times),
    }
    write_parquet(tmp_path, columns)
    assert same(tmp_path, expected)


@pytest.mark.parametrize("time_form", TIME_FORMS)
def test_every_type_of_times_gives_one_dataset(tmp_path: Path, expected: dict[str, bytes], time_form: str) -> None:
    users, items, times = two_thousand()
    write_parquet(tmp_path, {"user_id": users, "item_id": items, "timestamp": TIME_FORMS[time_form](times)})
    assert same(tmp_path, expected)


@pytest.mark.parametrize("packed", ["csv", "csv.gz", "csv.zst", "tsv"])
@pytest.mark.parametrize("time_form", CSV_TIMES)
def test_every_form_of_csv_gives_one_dataset(
    tmp_path: Path, expected: dict[str, bytes], packed: str, time_form: str
) -> None:
    write, separator = CSV_TIMES[time_form], "\t" if packed == "tsv" else ","
    lines = ["user_id,item_id,timestamp".replace(",", separator)]
    lines += [
        separator.join((str(user), str(item), write(time))) for user, item, time in zip(*two_thousand(), strict=True)
    ]
    content = ("\n".join(lines) + "\n").encode()
    if packed.endswith("gz"):
        content = gzip.compress(content)
    elif packed.endswith("zst"):
        content = pa.compress(content, codec="zstd", asbytes=True)
    (tmp_path / f"events.{packed}").write_bytes(content)
    assert same(tmp_path, expected)


@pytest.mark.parametrize("id_form", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), "csv"])
def test_every_form_of_text_ids_gives_one_dataset(tmp_path: Path, id_form: Any) -> None:
    users, items, times = two_thousand()
    texts = [[f"0{value}" for value in values] for values in (users, items)]
    plain = tmp_path / "plain"
    write_parquet(plain, {"user_id": texts[0], "item_id": texts[1], "timestamp": times})
    of_plain = files_of(run(plain, split={"kind": "time"}).path)
    other = tmp_path / "other"
    if id_form == "csv":
        write_csv(other, list(zip(*texts, times, strict=True)))
    else:
        columns = [pa.array(values).cast(id_form) for values in texts]
        write_parquet(other, {"user_id": columns[0], "item_id": columns[1], "timestamp": times})
    assert same(other, of_plain)


@pytest.mark.parametrize("folders", ["", "day={}/", "user_id={}/timestamp=2020-01-01/"])
def test_many_files_and_folders_give_one_dataset(tmp_path: Path, expected: dict[str, bytes], folders: str) -> None:
    users, items, times = two_thousand()
    kinds = [pa.int64(), pa.int32(), pa.uint16()]
    for part in range(7):
        columns = {
            "user_id": pa.array(users[part::7], kinds[part % 3]),
            "item_id": items[part::7],
            "timestamp": times[part::7],
        }
        write_parquet(tmp_path, columns, f"{folders.format(part)}events.{part}.parquet")
    assert same(tmp_path, expected, events=["**/events.*.parquet"])


def test_wanted_folders_give_one_dataset(tmp_path: Path, expected: dict[str, bytes]) -> None:
    for item in sorted(set(two_thousand()[1])):
        rows = [(user, time) for user, found, time in zip(*two_thousand(), strict=True) if found == item]
        users, times = zip(*rows, strict=True)
        write_parquet(tmp_path, {"user_id": users, "timestamp": times}, f"item_id={item}/part.parquet")
    assert same(tmp_path, expected, events=["*/part.parquet"], partitions=["item_id"])
