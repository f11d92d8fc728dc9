"""A seeded, vectorised simulator of engagement logs that shows the tension between recall and relevance.

The generative model
--------------------

**Items.** An item has a coarse and a fine topic (``topic_l1``, ``topic_l2``) and, inside the fine topic, a hidden
*aspect* that colours the words of its title. Independently of topics it belongs to a *community*: items of many topics
that are habitually engaged together (a scene, a bundle, a shared audience). A *creator* has a home community and a few
home topics, and most of the creator's items follow both; *styles* are tags that a community favours. So communities
show in ids and in co-engagement, never in the content. Popularity falls as a power of the item's random rank
(``popularity_skew``). A share of the items (``fresh_share``) is born while the clock runs; attention to an item decays
from its birth to a floor.

**Users.** A user holds ``interests_per_user`` interests, each a (fine topic, aspect), and two communities, some held
dearer than others. Each day every interest is redrawn with probability ``drift`` (a community with half of it), half of
the time within the same coarse topic. How active users are is log-normal.

**Events.** A user's events of one day form a session around one interest and one community. An event is

* topical, with probability ``topical_share``: an item of the session's (or another) interest, mostly of its aspect;
* communal, with probability ``communal_share``: an item of one of the user's communities, whatever its topic;
* else an item of the whole catalogue;

and within that choice it goes to items in proportion to popularity times attention of that day.

**Reactions.** An event's ``value`` is the share of the item that the user takes in (0 to 1), and its ``event`` is
``like`` or ``click``. Both grow with what the item is to the user (of an interest, of its topic at least, of a
community) and with the item's hidden appeal, which is partly its creator's. They change nothing of what comes next.

**What an encoder would see.** ``content_embedding`` adds a direction of the coarse topic, one of the fine topic, the
mean of the title words' vectors, and noise (``content_noise``).

So neighbours in content match topics, but miss what communities bring together and which of many like items are
engaged with; neighbours in co-engagement find those, match topics less, and are blind to fresh items.

Days are drawn one after another and written as Parquet, so memory holds the items, the users' states and one
chunk of events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mtmh.config import Fraction, NonNegative, Positive, Settings
from mtmh.prepare.ranges import bounded_ranges
from mtmh.prepare.sources.base import SourceContext, SourceTables
from mtmh.prepare.table_file import table_file

SECONDS_A_DAY = 86_400
CHUNK_EVENTS = 1_000_000
CHUNK_ITEMS = 100_000
WORDS_A_TITLE = 3
OWN_WORDS = 4  # of a topic's words, those that an aspect prefers
HOME_TOPICS = 3
ITEM_SCHEMA = pa.schema(
    [
        ("item_id", pa.int64()),
        ("text", pa.string()),
        ("topic_l1", pa.string()),
        ("topic_l2", pa.string()),
        ("creator", pa.int64()),
        ("styles", pa.list_(pa.string())),
        ("duration", pa.float32()),
        ("price", pa.float32()),
        ("quality", pa.float32()),
        ("content_embedding", pa.list_(pa.float32())),
    ]
)

Share = Annotated[float, Field(ge=0.0, le=1.0)]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


class SyntheticOptions(Settings):
    """``data.options`` of the source ``synthetic``."""

    num_users: Positive = 6_000
    num_items: Positive = 8_000
    num_events: Positive = 300_000
    num_days: Positive = 60
    num_topics_l1: Positive = 10
    num_topics_l2: Positive = 6  # fine topics of each coarse topic
    num_aspects: Positive = 4  # hidden kinds within a fine topic
    num_communities: Positive | None = None  # None: one for 40 items
    num_creators: Positive | None = None  # None: one for 12 items
    num_styles: Positive = 60
    interests_per_user: Positive = 4
    topical_share: Share = 0.45
    communal_share: Share = 0.4
    aspect_focus: Share = 0.8  # topical events that stay within the interest's aspect
    session_focus: Share = 0.6  # events that stay with the session's interest and community
    drift: Share = 0.01  # chance a day that an interest is replaced
    popularity_skew: NonNegative = 0.7
    activity_spread: NonNegative = 0.7  # standard deviation of the logarithm of users' activity
    fresh_share: Fraction = 0.4  # items born while the clock runs
    attention_days: Annotated[float, Field(gt=0.0)] = 7.0
    attention_floor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    missing_price: Share = 0.03
    content_dim: Positive = 64
    content_noise: NonNegative = 0.9
    title_noise: Share = 0.0  # words of titles that are of any topic

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.topical_share + self.communal_share > 1.0:
            raise ValueError("topical_share and communal_share exceed 1 together")
        return self


def synthetic_tables(context: SourceContext) -> SourceTables:
    """Simulates into the scratch folder.

    Raises:
        ValueError: an option that does not fit.
    """
    options = context.options(SyntheticOptions)
    folder = context.scratch / "synthetic"
    folder.mkdir()
    simulate(options, context.seed, folder, context.note)
    events = table_file(context.connection, sorted(folder.glob("events-*.parquet")))
    items = table_file(context.connection, [folder / "items.parquet"])
    return SourceTables(
        events=f"SELECT user_id, item_id, timestamp, event, value, NULL::VARCHAR AS drop_reason FROM {events.sql}",
        items=f"SELECT *, NULL::VARCHAR AS image, NULL::VARCHAR AS drop_reason FROM {items.sql}",
        id_features=("creator", "styles"),
        float_features=("duration", "price", "quality"),
        event_columns=("event", "value"),
        tables=(events, items),
        events_by_file=events,
        items_by_file=items,
    )


def simulate(options: SyntheticOptions, seed: int, folder: Path, note: Callable[[str], None] | None = None) -> None:
    """Writes ``items.parquet`` and ``events-<day>.parquet`` to ``folder``.

    An event is user_id, item_id, timestamp (int64), event (string) and value (float32).

    Args:
        options: the world's sizes and habits.
        seed: the same seed and options write the same bytes.
        folder: where the files go.
        note: takes a line about how far it is.
    """
    world = _make_world(options, np.random.default_rng([seed, 0]))
    _write_items(world, options, np.random.default_rng([seed, 1]), folder / "items.parquet")
    appeal = _appeal(world, np.random.default_rng([seed, 4]))
    crowd = _Crowd(world, options, np.random.default_rng([seed, 2]))
    events_of_day = np.diff(np.arange(options.num_days + 1) * options.num_events // options.num_days)
    for day in range(options.num_days):
        if note is not None:
            note(f"simulating day {day + 1} of {options.num_days}")
        rng = np.random.default_rng([seed, 3, day])
        if day > 0:
            crowd.drift(rng)
        counts = rng.multinomial(events_of_day[day], crowd.activity)
        picker = _Picker(world, options, day)
        reaction_rng = np.random.default_rng([seed, 5, day])
        with pq.ParquetWriter(folder / f"events-{day:05d}.parquet", _EVENTS, compression="lz4") as writer:
            for first, last in bounded_ranges(counts, CHUNK_EVENTS):
                user, item, second = _draw_events(crowd, picker, counts[first:last], first, day, options, rng)
                event, value = _react(crowd, appeal, user, item, reaction_rng)
                writer.write_table(pa.Table.from_arrays([user + 1, item + 1, second, event, value], schema=_EVENTS))


_EVENTS = pa.schema(
    [
        ("user_id", pa.int64()),
        ("item_id", pa.int64()),
        ("timestamp", pa.int64()),
        ("event", pa.dictionary(pa.int8(), pa.string())),
        ("value", pa.float32()),
    ]
)


@dataclass(frozen=True)
class _World:
    """Items by their number, and what they are made of. A cell is a (fine topic, aspect)."""

    cell: IntArray
    community: IntArray
    creator: IntArray
    popularity: FloatArray
    birth: FloatArray  # days
    cell_share: FloatArray  # of items and of interests
    num_cells: int
    num_communities: int


def _make_world(options: SyntheticOptions, rng: Generator) -> _World:
    num_items, aspects = options.num_items, options.num_aspects
    num_topics = options.num_topics_l1 * options.num_topics_l2
    num_communities = options.num_communities or max(1, num_items // 40)
    num_creators = options.num_creators or max(1, num_items // 12)

    topic_share = rng.lognormal(0.0, 0.5, num_topics)
    home_topics = _draw(rng, topic_share, (num_creators, HOME_TOPICS))
    home_community = rng.integers(num_communities, size=num_creators)
    creator = _draw(rng, rng.lognormal(0.0, 0.8, num_creators), num_items)
    topic = np.where(
        rng.random(num_items) < 0.85,
        home_topics[creator, rng.integers(HOME_TOPICS, size=num_items)],
        _draw(rng, topic_share, num_items),
    )
    community = np.where(
        rng.random(num_items) < 0.85, home_community[creator], rng.integers(num_communities, size=num_items)
    )
    born_later = rng.random(num_items) < options.fresh_share
    days = float(options.num_days)
    return _World(
        cell=topic * aspects + rng.integers(aspects, size=num_items),
        community=community,
        creator=creator,
        popularity=np.power(1.0 + rng.permutation(num_items), -options.popularity_skew),
        birth=np.where(born_later, rng.uniform(0.0, days, num_items), rng.uniform(-2.0 * days, 0.0, num_items)),
        cell_share=np.repeat(topic_share / topic_share.sum() / aspects, aspects),
        num_cells=num_topics * aspects,
        num_communities=num_communities,
    )


class _Crowd:
    """The users' activity and what they hold dear at present."""

    def __init__(self, world: _World, options: SyntheticOptions, rng: Generator) -> None:
        users = options.num_users
        activity = rng.lognormal(0.0, options.activity_spread, users)
        self.activity = activity / activity.sum()
        self.interests = _draw(rng, world.cell_share, (users, options.interests_per_user))
        self.communities = rng.integers(world.num_communities, size=(users, 2))
        self._world = world
        self._options = options

    def affinity(self, user: IntArray, item: IntArray) -> FloatArray:
        """The appeal of items to users at present, [N] each: 0 nothing, up to 1.6."""
        aspects = self._options.num_aspects
        interests, cell = self.interests[user], self._world.cell[item, None]
        of_topic = (interests // aspects == cell // aspects).any(axis=1)
        of_interest = (interests == cell).any(axis=1)
        of_community = (self.communities[user] == self._world.community[item, None]).any(axis=1)
        return np.asarray(0.4 * of_topic + 0.6 * of_interest + 0.6 * of_community)

    def drift(self, rng: Generator) -> None:
        """One day passes."""
        options, world = self._options, self._world
        user, slot = np.nonzero(rng.random(self.interests.shape, dtype=np.float32) < options.drift)
        cells_l1 = options.num_topics_l2 * options.num_aspects
        nearby = self.interests[user, slot] // cells_l1 * cells_l1 + rng.integers(cells_l1, size=len(user))
        anywhere = _draw(rng, world.cell_share, len(user))
        self.interests[user, slot] = np.where(rng.random(len(user)) < 0.5, nearby, anywhere)
        user, slot = np.nonzero(rng.random(self.communities.shape, dtype=np.float32) < options.drift / 2)
        self.communities[user, slot] = rng.integers(world.num_communities, size=len(user))


class _Picker:
    """Draws items of a range of cells, of a community, or of all, by that day's popularity times attention."""

    def __init__(self, world: _World, options: SyntheticOptions, day: int) -> None:
        self.num_cells = world.num_cells
        age = day + 0.5 - world.birth
        attention = np.where(
            age < 0.0,
            0.0,
            options.attention_floor
            + (1.0 - options.attention_floor) * np.exp(-np.maximum(age, 0.0) / options.attention_days),
        )
        weight = world.popularity * attention
        self._by_cell = np.argsort(world.cell, kind="stable")
        self._by_community = np.argsort(world.community, kind="stable")
        self._cell_mass = np.concatenate(([0.0], np.cumsum(weight[self._by_cell])))
        self._community_mass = np.concatenate(([0.0], np.cumsum(weight[self._by_community])))
        self._cell_start = np.searchsorted(world.cell[self._by_cell], np.arange(world.num_cells + 1))
        self._community_start = np.searchsorted(
            world.community[self._by_community], np.arange(world.num_communities + 1)
        )

    def of_cells(self, first: IntArray, last: IntArray, u: FloatArray) -> IntArray:
        """Items [N] of the cells ``[first, last)`` [N] at the uniform draws ``u`` [N]; of all where those are empty."""
        return self._pick(self._by_cell, self._cell_mass, self._cell_start[first], self._cell_start[last], u)

    def of_community(self, community: IntArray, u: FloatArray) -> IntArray:
        """Items [N] of the communities [N] at the uniform draws ``u`` [N]; of all where those are empty."""
        start = self._community_start
        return self._pick(self._by_community, self._community_mass, start[community], start[community + 1], u)

    @staticmethod
    def _pick(order: IntArray, mass: FloatArray, start: IntArray, stop: IntArray, u: FloatArray) -> IntArray:
        empty = mass[stop] <= mass[start]
        start, stop = np.where(empty, 0, start), np.where(empty, len(order), stop)
        position = np.searchsorted(mass, mass[start] + u * (mass[stop] - mass[start]), side="right") - 1
        return order[np.clip(position, start, stop - 1)]


def _draw_events(
    crowd: _Crowd,
    picker: _Picker,
    counts: IntArray,
    first_user: int,
    day: int,
    options: SyntheticOptions,
    rng: Generator,
) -> tuple[IntArray, IntArray, IntArray]:
    """The events of one day of the users ``first_user ...``, ``counts`` [users] of each: user, item, timestamp."""
    total, num_users = int(counts.sum()), len(counts)
    local = np.repeat(np.arange(num_users), counts)
    user = first_user + local

    # A session dwells on one interest and one community; the first slots are held dearer.
    slots = options.interests_per_user
    dearness = 1.0 / np.arange(1.0, slots + 1.0)
    focus = _draw(rng, dearness, num_users)
    main_community = (rng.random(num_users) < 0.3).astype(np.int64)
    stays = rng.random(total) < options.session_focus
    slot = np.where(stays, focus[local], _draw(rng, dearness, total))
    community_slot = np.where(stays, main_community[local], rng.integers(2, size=total))

    kind, u = rng.random(total), rng.random(total)
    item = np.empty(total, np.int64)

    topical = np.flatnonzero(kind < options.topical_share)
    cell = crowd.interests[user[topical], slot[topical]]
    on_aspect = rng.random(len(topical)) < options.aspect_focus
    topic_start = cell // options.num_aspects * options.num_aspects
    item[topical] = picker.of_cells(
        np.where(on_aspect, cell, topic_start),
        np.where(on_aspect, cell + 1, topic_start + options.num_aspects),
        u[topical],
    )

    communal = np.flatnonzero((kind >= options.topical_share) & (kind < options.topical_share + options.communal_share))
    item[communal] = picker.of_community(crowd.communities[user[communal], community_slot[communal]], u[communal])

    anything = np.flatnonzero(kind >= options.topical_share + options.communal_share)
    everything = np.zeros(len(anything), np.int64)
    item[anything] = picker.of_cells(everything, everything + picker.num_cells, u[anything])

    position = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = rng.integers(SECONDS_A_DAY, size=num_users)
    second = (begin[local] + 60 * position + rng.integers(60, size=total)) % SECONDS_A_DAY
    return user, item, day * SECONDS_A_DAY + second


def _appeal(world: _World, rng: Generator) -> FloatArray:
    """The appeal of an item to whoever sees it, [I]: of its creator and its own, independent of its popularity."""
    of_creator = rng.normal(0.0, 0.8, int(world.creator.max()) + 1)
    appeal: FloatArray = of_creator[world.creator] + rng.normal(0.0, 0.5, len(world.creator))
    return appeal


def _react(
    crowd: _Crowd, appeal: FloatArray, user: IntArray, item: IntArray, rng: Generator
) -> tuple[pa.DictionaryArray, NDArray[np.float32]]:
    """Kind and value of events [N]."""
    drive = crowd.affinity(user, item) + appeal[item]
    taken_in = 1.0 / (1.0 + np.exp(0.6 - 1.2 * drive - rng.normal(0.0, 0.8, len(item))))
    liked = rng.random(len(item)) < 1.0 / (1.0 + np.exp(3.6 - 1.6 * drive))
    event = pa.DictionaryArray.from_arrays(pa.array(liked.astype(np.int8)), pa.array(["click", "like"]))
    return event, taken_in.astype(np.float32)


def _write_items(world: _World, options: SyntheticOptions, rng: Generator, path: Path) -> None:
    topics = topic_words(options.num_topics_l1, options.num_topics_l2)
    names_l1, names_l2 = pa.array([topic.l1 for topic in topics]), pa.array([topic.l2 for topic in topics])
    vocabulary = sorted({word for topic in topics for word in topic.words})
    number = {word: i for i, word in enumerate(vocabulary)}
    words_of_topic = np.array([[number[word] for word in topic.words] for topic in topics])
    fillers = pa.array(_word_file()["fillers"])

    dim = options.content_dim
    direction_l1 = _unit(rng, options.num_topics_l1, dim)
    direction_l2 = _unit(rng, len(topics), dim)
    direction_word = _unit(rng, len(vocabulary), dim)
    signature = rng.integers(options.num_styles, size=(world.num_communities, 2))
    price_level = rng.normal(2.5, 0.6, world.num_communities)
    duration_level = rng.normal(4.0, 0.5, len(topics))
    rank = np.argsort(np.argsort(world.popularity)) / len(world.popularity)

    with pq.ParquetWriter(path, ITEM_SCHEMA, compression="lz4") as writer:
        for start in range(0, options.num_items, CHUNK_ITEMS):
            rows = slice(start, min(start + CHUNK_ITEMS, options.num_items))
            count = rows.stop - rows.start
            topic, aspect = np.divmod(world.cell[rows], options.num_aspects)
            community = world.community[rows]

            words = _title_words(words_of_topic[topic], aspect, options.num_aspects, rng)
            if options.title_noise > 0.0:
                stray = rng.random(words.shape) < options.title_noise
                words = np.where(stray, rng.integers(len(vocabulary), size=words.shape), words)
            text = pc.binary_join_element_wise(
                fillers.take(pa.array(rng.integers(len(fillers), size=count))),
                *(pa.array(vocabulary).take(pa.array(column)) for column in words.T),
                " ",
            )
            noise = rng.standard_normal((count, dim)) * (options.content_noise / dim**0.5)
            content = (
                0.5 * direction_l1[topic // options.num_topics_l2]
                + 0.6 * direction_l2[topic]
                + 0.8 * direction_word[words].mean(axis=1)
                + noise
            )
            content /= np.linalg.norm(content, axis=1, keepdims=True)
            price = rng.lognormal(price_level[community], 0.4)
            columns = [
                np.arange(rows.start, rows.stop) + 1,
                text,
                names_l1.take(pa.array(topic)),
                names_l2.take(pa.array(topic)),
                world.creator[rows] + 1,
                _styles(signature[community], options.num_styles, rng),
                rng.lognormal(duration_level[topic], 0.4).astype(np.float32),
                pa.array(price.astype(np.float32), mask=rng.random(count) < options.missing_price),
                (rank[rows] + rng.normal(0.0, 0.3, count)).astype(np.float32),
                pa.ListArray.from_arrays(
                    np.arange(0, count * dim + 1, dim, dtype=np.int32), content.astype(np.float32).ravel()
                ),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=ITEM_SCHEMA))


def _title_words(words: IntArray, aspect: IntArray, num_aspects: int, rng: Generator) -> IntArray:
    """Distinct word numbers [N, WORDS_A_TITLE] out of each item's topic words [N, W], mostly the aspect's own."""
    count, width = words.shape
    first = aspect * width // num_aspects
    foreign = (np.arange(width) - first[:, None]) % width >= OWN_WORDS
    order = np.argsort(rng.random((count, width)) + 0.8 * foreign, axis=1)[:, :WORDS_A_TITLE]
    return np.take_along_axis(words, order, axis=1)


def _styles(signature: IntArray, num_styles: int, rng: Generator) -> pa.ListArray:
    """Style tags of N items: each of the community's two [N, 2] with probability 0.7, and one of any kind with 0.4."""
    count = len(signature)
    tags = np.column_stack([signature, rng.integers(num_styles, size=count)])
    kept = rng.random((count, 3)) < np.array([0.7, 0.7, 0.4])
    offsets = np.concatenate(([0], np.cumsum(kept.sum(axis=1)))).astype(np.int32)
    names = pa.array([f"style-{i:03d}" for i in range(num_styles)])
    return pa.ListArray.from_arrays(offsets, names.take(pa.array(tags[kept])))


@dataclass(frozen=True)
class TopicWords:
    """A fine topic, its coarse topic, and the words of its titles."""

    l1: str
    l2: str
    words: tuple[str, ...]


def topic_words(num_l1: int, num_l2: int) -> list[TopicWords]:
    """``num_l1 * num_l2`` fine topics, coarse topic by coarse topic.

    Beyond the topics of the word file, names get a number and words are mixed from two listed topics.
    """
    listed = _word_file()["topics"]
    names_l1 = list(listed)
    topics = []
    for i in range(num_l1):
        round_l1, base_l1 = divmod(i, len(names_l1))
        subtopics = list(listed[names_l1[base_l1]].items())
        for j in range(num_l2):
            round_l2, base_l2 = divmod(j, len(subtopics))
            l2, words = subtopics[base_l2]
            # Each further round borrows its second half from another listed topic.
            partners = list(listed[names_l1[(base_l1 + round_l1) % len(names_l1)]].values())
            partner = partners[(base_l2 + round_l1 + round_l2) % len(partners)]
            suffix = "" if round_l1 == round_l2 == 0 else f" {round_l1 + 1}.{round_l2 + 1}"
            mixed = words if not suffix else [*words[: len(words) // 2], *partner[len(words) // 2 :]]
            topics.append(
                TopicWords(names_l1[base_l1] + (f" {round_l1 + 1}" if round_l1 else ""), l2 + suffix, tuple(mixed))
            )
    return topics


def _word_file() -> dict[str, dict[str, dict[str, list[str]]]]:
    text = (resources.files("mtmh.prepare.sources") / "words.yaml").read_text()
    return yaml.safe_load(text)  # type: ignore[no-any-return]


def _draw(rng: Generator, weights: FloatArray, size: int | tuple[int, ...]) -> IntArray:
    """Numbers 0, 1, ... in proportion to ``weights``."""
    total = np.cumsum(weights)
    drawn: IntArray = np.searchsorted(total, rng.random(size) * total[-1], side="right")
    return np.minimum(drawn, len(weights) - 1)


def _unit(rng: Generator, rows: int, dim: int) -> FloatArray:
    vectors: FloatArray = rng.standard_normal((rows, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
