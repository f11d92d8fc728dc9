"""The SQL of prepare: the same statements for every source, one function a step.

Plain analytic SQL (joins, group-bys, windows, md5), so that it can run on any engine that has those. Working tables:

    source_items  what the adapter gives: item_id, features, text, topics, ..., drop_reason
    catalogue     item_id, item_code          the kept items in seeded hash order
    staged        user_id, item_code, timestamp, fraction, drop_reason     every event that was read
    event_kinds   event, kind                 kinds of kept events, in the order of their names
    kept_kinds    event, kind, bit            those of the training period
    users         user_id, user_code          users of kept events in seeded hash order
    events        user_code, item_code, timestamp, fraction                kept events
    split         user_code, item_code, timestamp, fraction, is_test       without consecutive repeats

Where the source has kinds or values of events, ``staged`` also holds event and value, ``events`` kind and value (NULL:
none), and ``split`` kinds (mask of bits, 0: none) and value.

    item_facts    item_code, item_index, train_count, first_seen
    vocabulary    value, row                  of the id feature at hand

``fraction`` is what ``timestamp`` leaves of a finer clock; events are ordered and cut by both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mtmh.config import SplitConfig
from mtmh.data.ids import sql_raw_id
from mtmh.prepare.sql import literal, quoted

ITEM_COLUMNS = {
    "text": "VARCHAR",
    "image": "VARCHAR",
    "topic_l1": "VARCHAR",
    "topic_l2": "VARCHAR",
    "content_embedding": "FLOAT[]",
}

IN_ORDER = "timestamp, fraction, item_code"  # of a user's events


class Instant(NamedTuple):
    """A point in time, in the events' unit."""

    timestamp: int
    fraction: float = 0.0

    @property
    def since(self) -> str:
        """SQL: whether an event lies there or later."""
        if not self.fraction:
            return f"timestamp >= {self.timestamp}"
        return f"(timestamp, fraction) >= ({self.timestamp}, {self.fraction!r}::DOUBLE)"

    @property
    def before(self) -> str:
        """SQL: whether an event lies before it."""
        return f"NOT ({self.since})"


def source_items_from_events(events: str) -> str:
    """``source_items`` where the source has no items table: what the events name."""
    absent = ", ".join(f"NULL::{kind} AS {name}" for name, kind in ITEM_COLUMNS.items())
    return f"""
        CREATE TABLE source_items AS
        SELECT item_id, {absent}, NULL::VARCHAR AS drop_reason
        FROM (
            SELECT DISTINCT item_id FROM ({events})
            WHERE drop_reason IS NULL AND user_id IS NOT NULL AND item_id IS NOT NULL AND timestamp IS NOT NULL
        )"""


def source_items(items: str) -> str:
    """``source_items`` from the adapter's query."""
    return f"""
        CREATE TABLE source_items AS
        SELECT * REPLACE (
            coalesce(drop_reason, CASE WHEN item_id IS NULL THEN 'no_item' END) AS drop_reason
        )
        FROM ({items})"""


def duplicate_item() -> str:
    """An item id that comes more than once: item_id, rows."""
    return """
        SELECT item_id, count(*) AS num_rows FROM source_items WHERE drop_reason IS NULL
        GROUP BY item_id HAVING count(*) > 1 ORDER BY item_id LIMIT 1"""


def catalogue(seed: int) -> str:
    """``catalogue``: codes in hash order tell nothing of popularity or time."""
    return f"""
        CREATE TABLE catalogue AS
        SELECT item_id, ({_hash_rank(f"{seed}:item", "item_id")})::INTEGER AS item_code
        FROM source_items WHERE drop_reason IS NULL"""


def staged(events: str, event_columns: Sequence[str] = (), *, has_fractions: bool = False) -> str:
    """``staged``: one scan of the adapter's events, each row kept or with the first reason against it."""
    labels = ""
    if event_columns:
        kinds = {"event": "VARCHAR", "value": "FLOAT"}
        offered = [f"e.{name}" if name in event_columns else f"NULL::{kind} AS {name}" for name, kind in kinds.items()]
        labels = ", ".join(offered) + ", "
    return f"""
        CREATE TABLE staged AS
        SELECT e.user_id, c.item_code, e.timestamp, {"e.fraction" if has_fractions else "0::DOUBLE AS fraction"},
            {labels}coalesce(e.drop_reason, CASE
            WHEN e.user_id IS NULL THEN 'no_user'
            WHEN e.item_id IS NULL THEN 'no_item'
            WHEN e.timestamp IS NULL THEN 'no_timestamp'
            WHEN c.item_code IS NULL THEN 'unknown_item' END) AS drop_reason
        FROM ({events}) AS e LEFT JOIN catalogue AS c ON e.item_id = c.item_id"""


def drop_counts(table: str) -> str:
    """Rows by reason, NULL for kept ones: drop_reason, rows."""
    return f"SELECT drop_reason, count(*) FROM {table} GROUP BY drop_reason ORDER BY drop_reason"


def users(seed: int) -> str:
    """``users``."""
    return f"""
        CREATE TABLE users AS
        SELECT user_id, ({_hash_rank(f"{seed}:user", "user_id")})::INTEGER AS user_code
        FROM (SELECT DISTINCT user_id FROM staged WHERE drop_reason IS NULL)"""


def event_kinds() -> str:
    """``event_kinds``."""
    return """
        CREATE TABLE event_kinds AS
        SELECT event, row_number() OVER (ORDER BY event)::INTEGER AS kind
        FROM (SELECT DISTINCT event FROM staged WHERE drop_reason IS NULL AND event IS NOT NULL)"""


def events(labels: bool = False) -> str:
    """``events``."""
    columns, join = "", ""
    if labels:
        columns = ", k.kind, s.value"
        join = " LEFT JOIN event_kinds AS k ON s.event = k.event"
    return f"""
        CREATE TABLE events AS
        SELECT u.user_code, s.item_code, s.timestamp, s.fraction{columns}
        FROM staged AS s JOIN users AS u ON s.user_id = u.user_id{join}
        WHERE s.drop_reason IS NULL"""


def largest_user() -> str:
    """The user with the most events: user_id, num_events, and how many users there are."""
    return """
        SELECT max_by(user_id, num_events), max(num_events), count(*)
        FROM (SELECT user_code, count(*) AS num_events FROM events GROUP BY user_code)
        JOIN users USING (user_code)"""


def kept_kinds(cutoff: Instant | None) -> str:
    """``kept_kinds``: kinds that come before the cut; without a common cut, all."""
    period = "" if cutoff is None else f" WHERE {cutoff.before}"
    return f"""
        CREATE TABLE kept_kinds AS
        SELECT event, kind, (row_number() OVER (ORDER BY event) - 1)::INTEGER AS bit
        FROM event_kinds WHERE kind IN (SELECT DISTINCT kind FROM events{period})"""


def events_since(instant: int) -> str:
    """The number of events at ``instant`` or later, and the first of those."""
    return f"SELECT count(*), min(timestamp) FROM events WHERE timestamp >= {instant}"


def empty_split(labels: bool = False) -> str:
    """``split`` without rows."""
    columns = ", kinds INTEGER, value FLOAT" if labels else ""
    return f"""
        CREATE TABLE split (
            user_code INTEGER, item_code INTEGER, timestamp BIGINT, fraction DOUBLE, is_test BOOLEAN{columns}
        )"""


def split(config: SplitConfig, cutoff: Instant | None, first_user: int, last_user: int, labels: bool = False) -> str:
    """Fills ``split`` for the users ``[first_user, last_user)``.

    An event whose item is that of the user's event before it is a repeat and left out: the first of a run stays,
    so what comes later never changes what is kept. The cut falls on what remains. Of a run's kinds and values, the
    first event takes all that lie in its own period: kinds together, the largest value.
    """
    if cutoff is not None:
        is_test = cutoff.since
    else:
        share = str(config.test_events or f"floor(num_events * {config.test_fraction!r}::DOUBLE + 0.5)")
        is_test = f"position > num_events - least(num_events - 1, greatest(1, {share}))"
    source = "events"
    if labels:
        source = """(
                    SELECT user_code, item_code, timestamp, fraction,
                        coalesce(1::INTEGER << k.bit, 0)::INTEGER AS kinds, value
                    FROM events AS e LEFT JOIN kept_kinds AS k ON e.kind = k.kind
                )"""
    ordered = f"""
                SELECT *, lag(item_code) OVER (PARTITION BY user_code ORDER BY {IN_ORDER}) AS previous
                FROM {source} WHERE user_code >= {first_user} AND user_code < {last_user}"""
    firsts = f"({ordered}) WHERE previous IS DISTINCT FROM item_code"
    return f"""
        INSERT INTO split
        SELECT user_code, item_code, timestamp, fraction, {is_test} AS is_test{", kinds, value" if labels else ""}
        FROM (
            SELECT *,
                row_number() OVER (PARTITION BY user_code ORDER BY {IN_ORDER}) AS position,
                count(*) OVER (PARTITION BY user_code) AS num_events
            FROM {f"({_runs(ordered, cutoff)})" if labels else firsts}
        )"""


def _runs(ordered: str, cutoff: Instant | None) -> str:
    """One row a run of events with one item: user_code, item_code, timestamp of the first, kinds, value.

    Events of one item and instant are peers: RANGE counts them together, whatever their order in either window.
    """

    def of_period(aggregate: str) -> str:
        if cutoff is None:  # the cut falls between runs
            return aggregate
        before = f"{aggregate} FILTER (WHERE {cutoff.before})"
        return f"CASE WHEN bool_or({cutoff.before}) THEN {before} ELSE {aggregate} END"

    return f"""
        SELECT user_code, any_value(item_code) AS item_code, min(timestamp) AS timestamp,
            min((timestamp, fraction))[2] AS fraction,
            {of_period("bit_or(kinds)")} AS kinds, {of_period("max(value)")} AS value
        FROM (
            SELECT user_code, item_code, timestamp, fraction, kinds, value,
                sum((previous IS DISTINCT FROM item_code)::INTEGER) OVER (
                    PARTITION BY user_code ORDER BY {IN_ORDER} RANGE UNBOUNDED PRECEDING
                ) AS run
            FROM ({ordered})
        )
        GROUP BY user_code, run"""


def period_bounds() -> str:
    """The first instant after T1, and the first of T2."""
    return "SELECT max(timestamp) FILTER (NOT is_test) + 1, min(timestamp) FILTER (is_test) FROM split"


def train_kinds() -> str:
    """The kinds that events of T1 have, as one mask."""
    return "SELECT coalesce(bit_or(kinds), 0) FROM split WHERE NOT is_test"


def train_item_counts() -> str:
    """T1 events of each item before the filters: item_code, num_events."""
    return "SELECT item_code, count(*) AS num_events FROM split WHERE NOT is_test GROUP BY item_code"


def rare_items(min_item_events: int) -> str:
    """``rare``: items with fewer T1 events."""
    return f"""
        CREATE TABLE rare AS
        SELECT item_code FROM ({train_item_counts()}) WHERE num_events < {min_item_events}"""


def histories(min_user_events: int, max_history: int, first_user: int, last_user: int, labels: bool = False) -> str:
    """T1 of the users ``[first_user, last_user)``, user by user, oldest first: user_code, item_code, timestamp."""
    return f"""
        SELECT user_code, item_code, timestamp{", kinds, value" if labels else ""}
        FROM (
            SELECT *,
                count(*) OVER (PARTITION BY user_code) AS num_events,
                row_number() OVER (
                    PARTITION BY user_code ORDER BY timestamp DESC, fraction DESC, item_code DESC
                ) AS from_end
            FROM ({_train(first_user, last_user)})
        )
        WHERE num_events >= {min_user_events} AND from_end <= {max_history}
        ORDER BY user_code, {IN_ORDER}"""


def history_drops(min_user_events: int, max_history: int, first_user: int, last_user: int) -> str:
    """Events that ``histories`` leaves out: those of short histories, those beyond ``max_history``."""
    return f"""
        SELECT
            coalesce(sum(num_events) FILTER (WHERE num_events < {min_user_events}), 0)::BIGINT,
            coalesce(sum(num_events - {max_history})
                FILTER (WHERE num_events >= {min_user_events} AND num_events > {max_history}), 0)::BIGINT
        FROM (
            SELECT user_code, count(*) AS num_events
            FROM ({_train(first_user, last_user)}) GROUP BY user_code
        )"""


def test_items(first_user: int, last_user: int, labels: bool) -> str:
    """T2 of the users ``[first_user, last_user)``, each item at its first engagement, with the number of events."""
    return f"""
        SELECT user_code, item_code, min(timestamp) AS timestamp, count(*) AS num_events
            {", bit_or(kinds) AS kinds, max(value) AS value" if labels else ""}
        FROM split
        WHERE is_test AND user_code >= {first_user} AND user_code < {last_user}
        GROUP BY user_code, item_code
        ORDER BY user_code, min((timestamp, fraction)), item_code"""


def user_ids(first_user: int, last_user: int) -> str:
    """The users ``[first_user, last_user)``: user_code, user_id."""
    return f"""
        SELECT user_code, user_id FROM users
        WHERE user_code >= {first_user} AND user_code < {last_user} ORDER BY user_code"""


def items() -> str:
    """The catalogue in item-index order, as items.parquet holds it."""
    columns = ", ".join(f"s.{name}" for name in ITEM_COLUMNS)
    return f"""
        SELECT c.item_id, {columns}, f.train_count, f.first_seen
        FROM item_facts AS f
        JOIN catalogue AS c ON f.item_code = c.item_code
        JOIN source_items AS s ON c.item_id = s.item_id
        WHERE s.drop_reason IS NULL
        ORDER BY f.item_index"""


def item_features(id_features: Mapping[str, bool], float_features: Sequence[str]) -> str:
    """Raw features in item-index order: distinct values of id features (name -> whether it is a list), and floats."""
    columns = [
        f"list_sort(list_distinct({f's.{quoted(name)}' if is_list else f'[s.{quoted(name)}]'})) AS {quoted(name)}"
        for name, is_list in id_features.items()
    ]
    columns += [f"{_finite(name)} AS {quoted(name)}" for name in float_features]
    return f"""
        SELECT {", ".join(columns)}
        FROM item_facts AS f
        JOIN catalogue AS c ON f.item_code = c.item_code
        JOIN source_items AS s ON c.item_id = s.item_id
        WHERE s.drop_reason IS NULL
        ORDER BY f.item_index"""


def select_raw_ids(is_string: bool) -> str:
    """Raw ids in item-index order."""
    return f"""
        SELECT {sql_raw_id("c.item_id") if is_string else "c.item_id"} AS raw_id
        FROM item_facts AS f JOIN catalogue AS c ON f.item_code = c.item_code
        ORDER BY f.item_index"""


def embedding_widths() -> str:
    """Widths of content embeddings, an item of each and whether all its numbers are finite."""
    return """
        SELECT len(content_embedding) AS width, min(item_id) AS item_id, count(*) AS num_items
        FROM source_items WHERE drop_reason IS NULL AND content_embedding IS NOT NULL
        GROUP BY width ORDER BY num_items DESC, width"""


def broken_embedding() -> str:
    """An item whose content embedding holds a missing number, NaN or infinity."""
    return """
        SELECT item_id FROM source_items
        WHERE drop_reason IS NULL AND content_embedding IS NOT NULL AND (
            NOT isfinite(list_sum(content_embedding)::DOUBLE) OR list_count(content_embedding) < len(content_embedding))
        ORDER BY item_id LIMIT 1"""


def float_feature(name: str) -> str:
    """One float feature: item_index, value (NULL: missing)."""
    return f"""
        SELECT f.item_index, {_finite(name)} AS value
        FROM item_facts AS f
        JOIN catalogue AS c ON f.item_code = c.item_code
        JOIN source_items AS s ON c.item_id = s.item_id
        WHERE s.drop_reason IS NULL"""


def vocabulary(name: str, is_list: bool, min_items: int, seed: int) -> str:
    """``vocabulary``: values that at least ``min_items`` items with T1 events carry, in hash order from row 1."""
    return f"""
        CREATE OR REPLACE TABLE vocabulary AS
        SELECT value, ({_hash_rank(f"{seed}:{name}", "value")} + 1)::INTEGER AS row
        FROM (
            SELECT value FROM ({_values(name, is_list)}) WHERE train_count > 0
            GROUP BY value HAVING count(DISTINCT item_index) >= {min_items}
        )"""


def rows_of_vocabulary() -> str:
    """``vocabulary`` as it is kept beside the dataset: value, row."""
    return "SELECT value, row FROM vocabulary ORDER BY row"


def item_vocabulary() -> str:
    """The vocabulary of the item ids: value, row; in the order of the item indices."""
    return """
        SELECT c.item_id AS value, row_number() OVER (ORDER BY f.item_index)::INTEGER AS row
        FROM item_facts AS f JOIN catalogue AS c ON f.item_code = c.item_code
        WHERE f.train_count > 0 ORDER BY f.item_index"""


def feature_rows(name: str, is_list: bool) -> str:
    """Rows of one id feature, item by item: item_index, row; row 0 where no value is in the vocabulary."""
    return f"""
        SELECT f.item_index, coalesce(k.row, 0)::INTEGER AS row
        FROM item_facts AS f LEFT JOIN (
            SELECT DISTINCT x.item_index, v.row
            FROM ({_values(name, is_list)}) AS x JOIN vocabulary AS v ON x.value = v.value
        ) AS k ON f.item_index = k.item_index
        ORDER BY f.item_index, row"""


def _values(name: str, is_list: bool) -> str:
    value = f"unnest(s.{quoted(name)})" if is_list else f"s.{quoted(name)}"
    return f"""
        SELECT item_index, train_count, value FROM (
            SELECT f.item_index, f.train_count, {value} AS value
            FROM item_facts AS f
            JOIN catalogue AS c ON f.item_code = c.item_code
            JOIN source_items AS s ON c.item_id = s.item_id
            WHERE s.drop_reason IS NULL
        ) WHERE value IS NOT NULL"""


def _finite(name: str) -> str:
    value = f"s.{quoted(name)}::DOUBLE"
    return f"CASE WHEN isfinite({value}) THEN {value} END"


def _train(first_user: int, last_user: int) -> str:
    return f"""
        SELECT * FROM split
        WHERE NOT is_test AND user_code >= {first_user} AND user_code < {last_user}
            AND item_code NOT IN (SELECT item_code FROM rare)"""


def _hash_rank(salt: str, column: str) -> str:
    """A seeded random order that needs no common state and is the same on every engine: 0, 1, 2, ..."""
    return f"row_number() OVER (ORDER BY md5({literal(salt + ':')} || {column}::VARCHAR), {column}) - 1"
