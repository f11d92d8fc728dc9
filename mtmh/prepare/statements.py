"""The SQL of prepare: the same statements for every source and every engine, one function a step.

The dialect is what DuckDB and Spark both read (names in double quotes, ``CAST``, ``STRING``); where they differ,
`Dialect` has the word. Nothing needs all rows in one place: ranks come from counts of buckets, and all else is joins,
group-bys and windows over a user. Working tables:

    source_events, source_items   what the adapter gives, as `read_events` and `read_items` take it
    catalogue     item_id, item_code          the kept items in seeded hash order
    staged        user_id, item_code, timestamp, drop_reason               every event that was read
    event_kinds   event, kind                 kinds of kept events, in the order of their names
    kept_kinds    event, kind, bit            those of the training period
    users         user_id, user_code, num_events                           users of kept events in seeded hash order
    events        user_code, item_code, timestamp                          kept events
    split         user_code, item_code, timestamp, is_test                 without consecutive repeats
    rare          item_code                   items with too few T1 events
    history_users user_code, user_index, num_events, num_test_events       users with a history; their T1, T2
    long_history  user_code, user_index, item_code, timestamp              T1 of users with more than is kept of one
    history       user_code, user_index, item_code, timestamp              T1 as the dataset has it
    item_order    item_code, item_index       where some items are known to nothing before the cut
    item_facts    item_code, item_id, item_index, train_count, first_seen

    vocabulary    value, row                  of the id feature at hand

Where the source has kinds or values of events, ``staged`` also holds event and value, ``events`` kind and value (NULL:
none), and ``split`` and ``history`` kinds (mask of bits, 0: none) and value. ``fraction`` is what ``timestamp`` leaves
of a finer clock; events are ordered and cut by both. Tables without such times do without the column, for whatever
sorts events carries all columns along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from mtmh.config import SplitConfig
from mtmh.prepare.sql import literal, quoted

ITEM_COLUMNS = ("text", "image", "topic_l1", "topic_l2", "content_embedding")
LARGEST_BUCKET = 16  # bits of a code
LARGEST_INTEGER = (1 << 31) - 1

Users = tuple[int, int] | None  # codes [first, last); None: all


class Dialect(NamedTuple):
    """The words that the engines do not share.

    Attributes:
        unnest: the function that makes a row of each entry of a list.
        floats: the type of lists of FLOAT.
        hex_number: SQL of the BIGINT that 16 hexadecimal digits below 2^63 write.
        list_of: SQL of the list of one value.
        sorted_set: SQL of the distinct values of a list in their order, without NULL.
    """

    unnest: str
    floats: str
    hex_number: Callable[[str], str]
    list_of: Callable[[str], str]
    sorted_set: Callable[[str], str]


class Columns(NamedTuple):
    """The columns of ``events`` and what comes of them, beyond user_code, item_code and timestamp.

    Attributes:
        fractions: ``fraction``.
        labels: kinds and values of events.
    """

    fractions: bool
    labels: bool

    @property
    def time(self) -> tuple[str, ...]:
        """The point in time of an event."""
        return ("timestamp", "fraction") if self.fractions else ("timestamp",)

    @property
    def in_order(self) -> tuple[str, ...]:
        """The order of a user's events."""
        return *self.time, "item_code"

    @property
    def kept(self) -> tuple[str, ...]:
        """All that is known of an event of a user in ``split`` and ``history``."""
        return "item_code", *self.time, *(("kinds", "value") if self.labels else ())

    @property
    def of_history(self) -> tuple[str, ...]:
        """All that ``history`` holds."""
        return "user_code", "user_index", *self.kept

    @property
    def written(self) -> tuple[str, ...]:
        """The columns that the dataset's files hold beside the item."""
        return "timestamp", *(("kinds", "value") if self.labels else ())


class Instant(NamedTuple):
    """A point in time, in the events' unit."""

    timestamp: int
    fraction: float = 0.0

    def since(self, columns: Columns) -> str:
        """SQL: whether an event lies there or later."""
        if not self.fraction:
            return f"timestamp >= {self.timestamp}"
        if not columns.fractions:
            return f"timestamp > {self.timestamp}"
        later = f"timestamp = {self.timestamp} AND fraction >= {_double(self.fraction)}"
        return f"(timestamp > {self.timestamp} OR ({later}))"

    def before(self, columns: Columns) -> str:
        """SQL: whether an event lies before it."""
        return f"NOT ({self.since(columns)})"


def read_events(events: str, event_columns: Sequence[str], columns: Columns) -> str:
    """``source_events`` from the adapter's query; DuckDB reads all files, so this is its SQL."""
    labels = ""
    if columns.labels:
        kinds = {"event": "VARCHAR", "value": "FLOAT"}
        offered = [name if name in event_columns else f"NULL::{kind} AS {name}" for name, kind in kinds.items()]
        labels = ", ".join(offered) + ", "
    return f"SELECT user_id, item_id, {_list(columns.time)}, {labels}drop_reason FROM ({events})"


def read_items(items: str, float_features: Sequence[str]) -> str:
    """``source_items`` from the adapter's query, likewise in DuckDB's SQL.

    ``embedding_width`` and ``embedding_is_sound`` tell of ``content_embedding``; float features are finite or NULL.
    """
    finite = [
        f"CASE WHEN isfinite({quoted(name)}::DOUBLE) THEN {quoted(name)}::DOUBLE END AS {quoted(name)}"
        for name in float_features
    ]
    reason = "coalesce(drop_reason, CASE WHEN item_id IS NULL THEN 'no_item' END) AS drop_reason"
    return f"""
        SELECT * REPLACE ({", ".join([reason, *finite])}), len(content_embedding)::INTEGER AS embedding_width,
            isfinite(list_sum(content_embedding)::DOUBLE)
                AND list_count(content_embedding) = len(content_embedding) AS embedding_is_sound
        FROM ({items})"""


def source_items_from_events(dialect: Dialect) -> str:
    """``source_items`` where the source has no items table: what the events name."""
    absent = ", ".join(
        f"CAST(NULL AS {dialect.floats if name == 'content_embedding' else 'STRING'}) AS {name}"
        for name in ITEM_COLUMNS
    )
    return f"""
        SELECT DISTINCT item_id, {absent}, CAST(NULL AS STRING) AS drop_reason,
            CAST(NULL AS INTEGER) AS embedding_width, CAST(NULL AS BOOLEAN) AS embedding_is_sound
        FROM source_events
        WHERE drop_reason IS NULL AND user_id IS NOT NULL AND item_id IS NOT NULL AND timestamp IS NOT NULL"""


def duplicate_item() -> str:
    """An item id that comes more than once: item_id, rows."""
    return """
        SELECT item_id, count(*) AS num_rows FROM source_items WHERE drop_reason IS NULL
        GROUP BY item_id HAVING count(*) > 1 ORDER BY item_id LIMIT 1"""


def catalogue(seed: int, num_items: int) -> str:
    """``catalogue``: codes in hash order tell nothing of popularity or time."""
    kept = "source_items WHERE drop_reason IS NULL"
    return _hash_ranked(f"{seed}:item", "item_id", kept, "item_code", at_most=num_items)


def staged(columns: Columns) -> str:
    """``staged``: one scan of the events, each row kept or with the first reason against it."""
    times = _list(f"e.{name}" for name in columns.time)
    labels = "e.event, e.value, " if columns.labels else ""
    return f"""
        SELECT e.user_id, c.item_code, {times}, {labels}coalesce(e.drop_reason, CASE
            WHEN e.user_id IS NULL THEN 'no_user'
            WHEN e.item_id IS NULL THEN 'no_item'
            WHEN e.timestamp IS NULL THEN 'no_timestamp'
            WHEN c.item_code IS NULL THEN 'unknown_item' END) AS drop_reason
        FROM source_events AS e LEFT JOIN catalogue AS c ON e.item_id = c.item_id"""


def drop_counts(table: str) -> str:
    """Rows by reason, NULL for kept ones: drop_reason, rows."""
    return f"SELECT drop_reason, count(*) FROM {table} GROUP BY drop_reason ORDER BY drop_reason"


def has_fractions() -> str:
    """Whether any kept event lies between two units of ``timestamp``."""
    return "SELECT coalesce(max(fraction), 0) > 0 FROM staged WHERE drop_reason IS NULL"


def users(seed: int, num_events: int) -> str:
    """``users``, of so many events."""
    counted = "(SELECT user_id, count(*) AS num_events FROM staged WHERE drop_reason IS NULL GROUP BY user_id)"
    return _hash_ranked(f"{seed}:user", "user_id", counted, "user_code", others=("num_events",), at_most=num_events)


def event_kinds() -> str:
    """``event_kinds``."""
    return """
        SELECT event, CAST(row_number() OVER (ORDER BY event) AS INTEGER) AS kind
        FROM (SELECT DISTINCT event FROM staged WHERE drop_reason IS NULL AND event IS NOT NULL)"""


def events(columns: Columns) -> str:
    """``events``."""
    selected = ", ".join(f"s.{name}" for name in ("item_code", *columns.time))
    join = ""
    if columns.labels:
        selected += ", k.kind, s.value"
        join = " LEFT JOIN event_kinds AS k ON s.event = k.event"
    return f"""
        SELECT u.user_code, {selected}
        FROM staged AS s JOIN users AS u ON s.user_id = u.user_id{join}
        WHERE s.drop_reason IS NULL"""


def largest_user() -> str:
    """The user with the most events: user_id, num_events, and how many users there are."""
    return "SELECT max_by(user_id, num_events), max(num_events), count(*) FROM users"


def events_a_user() -> str:
    """Events of each user: user_code, num_events."""
    return "SELECT user_code, num_events FROM users ORDER BY user_code"


def kept_kinds(columns: Columns, cutoff: Instant | None) -> str:
    """``kept_kinds``: kinds that come before the cut; without a common cut, all."""
    period = "" if cutoff is None else f" WHERE {cutoff.before(columns)}"
    return f"""
        SELECT event, kind, CAST(row_number() OVER (ORDER BY event) - 1 AS INTEGER) AS bit
        FROM event_kinds WHERE kind IN (SELECT DISTINCT kind FROM events{period})"""


def around(columns: Columns, cutoff: Instant) -> str:
    """The numbers of events before and behind an instant."""
    return f"""
        SELECT count(*) FILTER (WHERE {cutoff.before(columns)}), count(*) FILTER (WHERE {cutoff.since(columns)})
        FROM events"""


def steps_of_time(first: int, stop: int, width: int) -> str:
    """The number of events in each step of ``width``, the latest first: beginning of the step, num_events."""
    return f"""
        SELECT timestamp - since % {width} AS step, count(*) AS num_events
        FROM (
            SELECT timestamp, timestamp - {first} AS since FROM events
            WHERE timestamp >= {first} AND timestamp < {stop}
        )
        GROUP BY timestamp - since % {width} ORDER BY step DESC"""


def split(columns: Columns, config: SplitConfig, cutoff: Instant | None, of_users: Users) -> str:
    """``split`` for some users.

    An event whose item is that of the user's event before it is a repeat and left out: the first of a run stays,
    so what comes later never changes what is kept. The cut falls on what remains. Of a run's kinds and values, the
    first event takes all that lie in its own period: kinds together, the largest value.
    """
    if cutoff is not None:
        is_test = cutoff.since(columns)
    else:
        share = str(config.test_events or f"floor(num_events * {_double(config.test_fraction)} + {_double(0.5)})")
        is_test = f"position > num_events - least(num_events - 1, greatest(1, {share}))"
    source = "events"
    if columns.labels:
        source = f"""(
                    SELECT user_code, {_list(columns.in_order)},
                        CAST(coalesce(CAST(1 AS INTEGER) << k.bit, 0) AS INTEGER) AS kinds, value
                    FROM events AS e LEFT JOIN kept_kinds AS k ON e.kind = k.kind
                ) AS e"""
    in_order = f"PARTITION BY user_code ORDER BY {_list(columns.in_order)}"
    ordered = f"""
                SELECT *, lag(item_code) OVER ({in_order}) AS previous
                FROM {source} WHERE {_among("user_code", of_users)}"""
    kept = (
        f"({_runs(columns, ordered, cutoff)})"
        if columns.labels
        else f"({ordered}) WHERE previous IS DISTINCT FROM item_code"
    )
    return f"""
        SELECT user_code, {_list(columns.kept)}, {is_test} AS is_test
        FROM (
            SELECT *,
                row_number() OVER ({in_order}) AS position,
                count(*) OVER (PARTITION BY user_code) AS num_events
            FROM {kept}
        )"""


def _runs(columns: Columns, ordered: str, cutoff: Instant | None) -> str:
    """One row a run of events with one item: user_code, item_code, timestamp of the first, kinds, value.

    Events of one item and instant are peers: RANGE counts them together, whatever their order in either window.
    """

    def of_period(aggregate: str) -> str:
        if cutoff is None:  # the cut falls between runs
            return aggregate
        before = cutoff.before(columns)
        return f"CASE WHEN bool_or({before}) THEN {aggregate} FILTER (WHERE {before}) ELSE {aggregate} END"

    begins = "previous IS DISTINCT FROM item_code"
    fraction = "min(CASE WHEN begins THEN fraction END) AS fraction, " if columns.fractions else ""
    return f"""
        SELECT user_code, any_value(item_code) AS item_code, min(timestamp) AS timestamp, {fraction}
            {of_period("bit_or(kinds)")} AS kinds, {of_period("max(value)")} AS value
        FROM (
            SELECT user_code, {_list(columns.kept)}, {begins} AS begins,
                sum(CASE WHEN {begins} THEN 1 ELSE 0 END) OVER (
                    PARTITION BY user_code ORDER BY {_list(columns.in_order)}
                    RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
                ) AS run
            FROM ({ordered})
        )
        GROUP BY user_code, run"""


def split_counts() -> str:
    """The numbers of events in T1 and T2."""
    return "SELECT count(*) FILTER (WHERE NOT is_test), count(*) FILTER (WHERE is_test) FROM split"


def period_bounds() -> str:
    """The first instant after T1, and the first of T2."""
    return """
        SELECT max(timestamp) FILTER (WHERE NOT is_test) + 1, min(timestamp) FILTER (WHERE is_test) FROM split"""


def train_kinds() -> str:
    """The kinds that events of T1 have, as one mask."""
    return "SELECT coalesce(bit_or(kinds), 0) FROM split WHERE NOT is_test"


def rare_items(min_item_events: int) -> str:
    """``rare``: items with fewer T1 events."""
    return f"""
        SELECT item_code FROM split WHERE NOT is_test GROUP BY item_code HAVING count(*) < {min_item_events}"""


def rare_events() -> str:
    """The number of T1 events of rare items."""
    return "SELECT count(*) FROM split AS s JOIN rare AS r ON s.item_code = r.item_code WHERE NOT s.is_test"


def item_order(num_items: int) -> str:
    """``item_order``: codes in their order, but items without a T1 event behind all others."""
    known = """
        SELECT c.item_code, CASE WHEN k.item_code IS NULL THEN 1 ELSE 0 END AS late
        FROM catalogue AS c
        LEFT JOIN (SELECT DISTINCT item_code FROM split WHERE NOT is_test) AS k ON c.item_code = k.item_code"""
    bucket = f"late * {1 << LARGEST_BUCKET} + (item_code >> {LARGEST_BUCKET})"
    return _ranked(known, bucket, "item_code", ("item_code",), "item_index", at_most=num_items)


def history_users(min_user_events: int, num_train: int, *, rare: bool) -> str:
    """``history_users``: those with enough of the ``num_train`` events in T1, in the order of their codes."""
    is_train = "NOT s.is_test" + (" AND r.item_code IS NULL" if rare else "")
    num_events = f"count(*) FILTER (WHERE {is_train})"
    counted = f"""
        SELECT s.user_code, {num_events} AS num_events, count(*) FILTER (WHERE s.is_test) AS num_test_events
        FROM split AS s{_JOIN_RARE if rare else ""} GROUP BY s.user_code HAVING {num_events} >= {min_user_events}"""
    bucket = f"user_code >> {LARGEST_BUCKET}"
    columns = ("user_code", "num_events", "num_test_events")
    return _ranked(counted, bucket, "user_code", columns, "user_index", at_most=num_train)


def history_counts(max_history: int) -> str:
    """Events of users with a history: those of T1, of these those beyond ``max_history``, and those of T2."""
    return f"""
        SELECT coalesce(sum(num_events), 0), coalesce(sum(greatest(num_events - {max_history}, 0)), 0),
            coalesce(sum(num_test_events), 0)
        FROM history_users"""


def long_history(columns: Columns, max_history: int, of_users: Users, *, rare: bool) -> str:
    """``long_history`` for some users, whose last events only their order tells."""
    backwards = _list(f"s.{name} DESC" for name in columns.in_order)
    train = f"{_train(rare)} AND u.num_events > {max_history} AND {_among('s.user_code', of_users)}"
    return f"""
        SELECT {_list(columns.of_history)}
        FROM (
            SELECT u.user_index, s.*, row_number() OVER (PARTITION BY s.user_code ORDER BY {backwards}) AS from_end
            {train}
        )
        WHERE from_end <= {max_history}"""


def history(columns: Columns, max_history: int, *, rare: bool, beyond: bool) -> str:
    """``history``, a view; ``beyond``: whether there is a ``long_history``."""
    names = _list(f"{'u' if name == 'user_index' else 's'}.{name}" for name in columns.of_history)
    whole = f"SELECT {names} {_train(rare)}"
    if not beyond:
        return whole
    return f"{whole} AND u.num_events <= {max_history} UNION ALL SELECT * FROM long_history"


def history_rows(columns: Columns, of_users: Users, *, ordered: bool) -> str:
    """``history`` user by user, oldest first: user_index, item_index, timestamp; ``ordered``: by ``item_order``."""
    index, join = _item_index("h", ordered)
    return f"""
        SELECT h.user_index, {index} AS item_index, {_list(f"h.{name}" for name in columns.written)}
        FROM history AS h{join}
        WHERE {_among("h.user_code", of_users)}
        ORDER BY h.user_index, {_list(f"h.{name}" for name in columns.in_order)}"""


def test_rows(columns: Columns, of_users: Users, *, ordered: bool) -> str:
    """T2 of users with a history, each item at its first engagement; columns as those of `history_rows`."""
    index, join = _item_index("f", ordered)
    labels = ", bit_or(kinds) AS kinds, max(value) AS value" if columns.labels else ""
    source, fraction = f"split WHERE is_test AND {_among('user_code', of_users)}", ""
    if columns.fractions:  # one row an instant, so that only one has the smallest
        source = f"""(
                SELECT user_code, item_code, timestamp, min(fraction) AS fraction{labels}
                FROM {source} GROUP BY user_code, item_code, timestamp
            )"""
        fraction = ", min_by(fraction, timestamp) AS fraction"
    return f"""
        SELECT u.user_index, {index} AS item_index, {_list(f"f.{name}" for name in columns.written)}
        FROM (
            SELECT user_code, item_code, min(timestamp) AS timestamp{fraction}{labels}
            FROM {source} GROUP BY user_code, item_code
        ) AS f JOIN history_users AS u ON f.user_code = u.user_code{join}
        ORDER BY u.user_index, {_list(f"f.{name}" for name in columns.in_order)}"""


def user_rows(of_users: Users) -> str:
    """Users with a history: user_index, user_id."""
    return f"""
        SELECT h.user_index, u.user_id FROM history_users AS h JOIN users AS u ON h.user_code = u.user_code
        WHERE {_among("h.user_code", of_users)} ORDER BY h.user_index"""


def item_facts(*, ordered: bool) -> str:
    """``item_facts``."""
    index, join = _item_index("c", ordered)
    return f"""
        SELECT c.item_code, c.item_id, {index} AS item_index, coalesce(h.num_events, 0) AS train_count, h.first_seen
        FROM catalogue AS c{join} LEFT JOIN (
            SELECT item_code, count(*) AS num_events, min(timestamp) AS first_seen FROM history GROUP BY item_code
        ) AS h ON c.item_code = h.item_code"""


def items() -> str:
    """The catalogue in item-index order, as items.parquet holds it."""
    columns = ", ".join(f"s.{name}" for name in ITEM_COLUMNS)
    return f"SELECT f.item_id, {columns}, f.train_count, f.first_seen {_FACTS_AND_ITEMS} ORDER BY f.item_index"


def item_features(dialect: Dialect, id_features: Mapping[str, bool], float_features: Sequence[str]) -> str:
    """Raw features in item-index order: distinct values of id features (name -> whether it is a list), and floats."""
    columns = []
    for name, is_list in id_features.items():
        values = f"s.{quoted(name)}" if is_list else dialect.list_of(f"s.{quoted(name)}")
        columns.append(f"{dialect.sorted_set(values)} AS {quoted(name)}")
    columns += [f"s.{quoted(name)} AS {quoted(name)}" for name in float_features]
    return f"SELECT {', '.join(columns)} {_FACTS_AND_ITEMS} ORDER BY f.item_index"


def item_counts() -> str:
    """T1 of the items in item-index order: train_count, first_seen."""
    return "SELECT train_count, first_seen FROM item_facts ORDER BY item_index"


def raw_ids(dialect: Dialect, is_string: bool) -> str:
    """Raw ids in item-index order, as `mtmh.data.ids.raw_ids` has them."""
    # The first 63 bits of 64, shifted to the end: as the first digit, 8 to f are 0 to 7.
    digits = "substr(md5(item_id), 1, 16)"
    below = f"translate(substr({digits}, 1, 1), '89abcdef', '01234567') || substr({digits}, 2, 15)"
    raw = dialect.hex_number(below) if is_string else "item_id"
    return f"SELECT {raw} AS raw_id FROM item_facts ORDER BY item_index"


def embedding_widths() -> str:
    """The two commonest widths of content embeddings, an item of each and how many there are."""
    return """
        SELECT embedding_width, min(item_id) AS item_id, count(*) AS num_items
        FROM source_items WHERE drop_reason IS NULL AND embedding_width IS NOT NULL
        GROUP BY embedding_width ORDER BY num_items DESC, embedding_width LIMIT 2"""


def broken_embedding() -> str:
    """An item whose content embedding holds a missing number, NaN or infinity; NULL: none."""
    return """
        SELECT min(item_id) FROM source_items
        WHERE drop_reason IS NULL AND embedding_width > 0 AND NOT coalesce(embedding_is_sound, false)"""


def float_feature(name: str) -> str:
    """One float feature in item-index order (NULL: missing)."""
    return f"SELECT s.{quoted(name)} AS value {_FACTS_AND_ITEMS} ORDER BY f.item_index"


def vocabulary(dialect: Dialect, name: str, is_list: bool, min_items: int, seed: int) -> str:
    """``vocabulary``: values that at least ``min_items`` items with T1 events carry, in hash order from row 1."""
    values = f"""(
            SELECT value FROM ({_values(dialect, name, is_list)}) WHERE train_count > 0
            GROUP BY value HAVING count(DISTINCT item_index) >= {min_items}
        )"""
    return _hash_ranked(f"{seed}:{name}", "value", values, "row", first=1)


def rows_of_vocabulary() -> str:
    """``vocabulary`` as it is kept beside the dataset, from row 1 on: value."""
    return "SELECT value FROM vocabulary ORDER BY row"


def item_vocabulary() -> str:
    """The item ids with rows of their own in the order of these, which are 1, 2, ...: value."""
    return "SELECT item_id AS value FROM item_facts WHERE train_count > 0 ORDER BY item_index"


def feature_rows(dialect: Dialect, name: str, is_list: bool) -> str:
    """Rows of one id feature, item by item: item_index, row; row 0 where no value is in the vocabulary."""
    return f"""
        SELECT f.item_index, coalesce(k.row, 0) AS row
        FROM item_facts AS f LEFT JOIN (
            SELECT DISTINCT x.item_index, v.row
            FROM ({_values(dialect, name, is_list)}) AS x JOIN vocabulary AS v ON x.value = v.value
        ) AS k ON f.item_index = k.item_index
        ORDER BY f.item_index, row"""


_JOIN_RARE = " LEFT JOIN rare AS r ON s.item_code = r.item_code"
_FACTS_AND_ITEMS = """
        FROM item_facts AS f
        JOIN (SELECT * FROM source_items WHERE drop_reason IS NULL) AS s ON f.item_id = s.item_id"""


def _values(dialect: Dialect, name: str, is_list: bool) -> str:
    value = f"{dialect.unnest}(s.{quoted(name)})" if is_list else f"s.{quoted(name)}"
    return f"""
        SELECT item_index, train_count, value
        FROM (SELECT f.item_index, f.train_count, {value} AS value {_FACTS_AND_ITEMS}) AS x
        WHERE value IS NOT NULL"""


def _train(rare: bool) -> str:
    """FROM and WHERE of the events in T1 (s) of users with a history (u)."""
    return f"""
        FROM split AS s JOIN history_users AS u ON s.user_code = u.user_code{_JOIN_RARE if rare else ""}
        WHERE NOT s.is_test{" AND r.item_code IS NULL" if rare else ""}"""


def _item_index(table: str, ordered: bool) -> tuple[str, str]:
    """SQL of the item's index, and the join that it needs."""
    if not ordered:
        return f"{table}.item_code", ""
    return "o.item_index", f" JOIN item_order AS o ON {table}.item_code = o.item_code"


def _among(code: str, of_users: Users) -> str:
    return "true" if of_users is None else f"{code} >= {of_users[0]} AND {code} < {of_users[1]}"


def _double(number: float) -> str:
    return f"CAST('{number!r}' AS DOUBLE)"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _hash_ranked(
    salt: str,
    column: str,
    source: str,
    rank: str,
    *,
    first: int = 0,
    at_most: int = LARGEST_INTEGER + 1,
    others: Sequence[str] = (),
) -> str:
    """Distinct values of a column in a seeded random order that is the same on every engine, from ``first`` on."""
    columns = (column, *others)
    hashed = f"""
        SELECT {_list(columns)}, md5({literal(salt + ":")} || CAST({column} AS STRING)) AS hash FROM {source}"""
    return _ranked(hashed, "substr(hash, 1, 3)", f"hash, {column}", columns, rank, first=first, at_most=at_most)


def _ranked(
    rows: str, bucket: str, order: str, columns: Sequence[str], rank: str, *, first: int = 0, at_most: int
) -> str:
    """Rows with their place in the order of (bucket, order): that in the bucket, behind the sizes of those before.

    A window over everything would bring everything to one machine. Of ``at_most`` rows the places may fit 32 bits,
    which whatever sorts events carries along.
    """
    kind = "INTEGER" if at_most <= LARGEST_INTEGER else "BIGINT"
    return f"""
        WITH ranked_rows AS (SELECT *, {bucket} AS bucket FROM ({rows})),
        buckets AS (SELECT bucket, count(*) AS num_rows FROM ranked_rows GROUP BY bucket),
        begins AS (
            SELECT bucket, sum(num_rows) OVER (ORDER BY bucket ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
                - num_rows AS before
            FROM buckets
        )
        SELECT {_list(f"r.{name}" for name in columns)}, CAST(
            b.before + row_number() OVER (PARTITION BY r.bucket ORDER BY {order}) - 1 + {first} AS {kind}
        ) AS {rank}
        FROM ranked_rows AS r JOIN begins AS b ON r.bucket = b.bucket"""
