"""Conditions, caps, diversity, boosts and items to move away from, compared with plain loops over all items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ivf_in_memory import build_ivf

from mtmh.config import RetrievalConfig
from mtmh.errors import RequestError
from mtmh.index.item_store import StoredItems
from mtmh.retrieval.answers import RetrievedItem
from mtmh.retrieval.catalogue import Catalogue
from mtmh.retrieval.filters import Filters
from mtmh.retrieval.merge import head_quotas, head_shares
from mtmh.retrieval.query import Query
from mtmh.retrieval.ranking import HeadScorePreranker
from mtmh.retrieval.retriever import Retriever

NUM_ITEMS, DIM = 200, 6
HEADS = ["engagement", "relevance"]
RNG = np.random.default_rng(5)
PRICES = [None if item % 13 == 0 else round(float(RNG.uniform(1, 40)), 2) for item in range(NUM_ITEMS)]
STYLES = [None if item % 9 == 0 else sorted({f"s{item % 4}", f"s{item % 7}"}) for item in range(NUM_ITEMS)]
BRANDS = [["acme", "umbra", "Zoë", None][int(RNG.integers(4))] for _ in range(NUM_ITEMS)]
ITEMS = pa.table(
    {
        "item_id": [f"i{item}" for item in range(NUM_ITEMS)],
        "text": [f"item {item}" for item in range(NUM_ITEMS)],
        "topic_l1": [["a", "b", "c"][item % 3] for item in range(NUM_ITEMS)],
        "topic_l2": [f"{item % 3}{item % 5}" for item in range(NUM_ITEMS)],
        "train_count": [(item * 7) % 50 for item in range(NUM_ITEMS)],
        "brand": pa.array([None if brand is None else [brand] for brand in BRANDS], pa.list_(pa.string())),
        "styles": pa.array(STYLES, pa.list_(pa.string())),
        "size": pa.array([[item % 6] for item in range(NUM_ITEMS)], pa.list_(pa.int64())),
        "price": pa.array(PRICES, pa.float64()),
    }
)


def unit(seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = {head: unit(place) for place, head in enumerate(HEADS)}
RETRIEVER = Retriever(
    {head: build_ivf(VECTORS[head], num_clusters=12) for head in HEADS},
    VECTORS,
    Catalogue(StoredItems.of(ITEMS)),
    RetrievalConfig(k=10, k_ann=NUM_ITEMS, num_probes=12, alpha=50),
    preranker=HeadScorePreranker(),
    sorter=HeadScorePreranker((HEADS[0], VECTORS[HEADS[0]])),
)
ROWS = ITEMS.to_pylist()


def number(answer: RetrievedItem) -> int:
    return int(str(answer.item)[1:])


def values_of(item: int, column: str) -> list[Any]:
    value = ROWS[item][column]
    return value if isinstance(value, list) else [] if value is None else [value]


def meets(item: int, column: str, condition: Any) -> bool:
    if isinstance(condition, dict):
        low, high = condition.get("min", -np.inf), condition.get("max", np.inf)
        return any(low <= value <= high for value in values_of(item, column))
    wanted = condition if isinstance(condition, list) else [condition]
    return any(value in wanted for value in values_of(item, column))


conditions = st.fixed_dictionaries(
    {},
    optional={
        "brand": st.sampled_from(["acme", ["umbra", "Zoë"], ["nobody"]]),
        "styles": st.sampled_from(["s1", ["s2", "s3"]]),
        "size": st.sampled_from([3, [1, 2], {"min": 2}, {"min": 1.5, "max": 4}]),
        "price": st.sampled_from([{"min": 10, "max": 20.5}, {"max": 5.0}, PRICES[1]]),
        "topic_l1": st.sampled_from(["a", ["b", "c"]]),
        "train_count": st.sampled_from([{"max": 20}, [0, 7, 14]]),
    },
)


@settings(deadline=None, max_examples=60)
@given(conditions, st.integers(0, NUM_ITEMS - 1), st.integers(1, 40))
def test_conditions_on_columns_hold_inside_the_search(where: dict[str, Any], trigger: int, k: int) -> None:
    query = Query([f"i{trigger}"], k=k, k_ann=k, num_probes=1, alpha=100, filters=Filters(where=where))
    found = [number(answer) for answer in RETRIEVER.retrieve(query)[0]]
    allowed = [item for item in range(NUM_ITEMS) if all(meets(item, name, where[name]) for name in where)]
    allowed = [item for item in allowed if item != trigger]
    assert len(found) == min(k, len(allowed))
    if where:
        similarity = VECTORS[HEADS[0]] @ VECTORS[HEADS[0]][trigger]
        # So few items are compared one by one, however few clusters are probed.
        assert found == sorted(allowed, key=lambda item: -similarity[item])[:k]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"brnd": "acme"}, r"filters\.where\.brnd: no column 'brnd' of the items; did you mean 'brand'\?; there are"),
        ({"brand": 3}, r"filters\.where\.brand: this column holds text, not 3"),
        ({"price": "cheap"}, r"filters\.where\.price: this column holds numbers, not 'cheap'"),
        ({"price": 10**400}, r"filters\.where\.price: this column holds numbers"),
        ({"size": 2.5}, r"filters\.where\.size: this column holds whole numbers, not 2\.5"),
        ({"brand": {"min": 1}}, r"filters\.where\.brand: a range of a column of text"),
        ({"price": {"mx": 1}}, r"filters\.where\.price: a range has min and max, not 'mx'; did you mean 'max'\?"),
        ({"price": {}}, r"filters\.where\.price: expected a range with min, max or both"),
        ({"price": {"min": float("nan")}}, r"filters\.where\.price: expected a number as min"),
    ],
)
def test_conditions_that_do_not_fit(where: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        RETRIEVER.retrieve(Query(["i1"], filters=Filters(where=where)))
    assert refused.value.field.startswith("filters.where.")


def test_conditions_that_nothing_meets_are_told() -> None:
    filters = Filters(
        topic_l1=["a", "zz"], where={"brand": ["acme", "zoe"], "price": {"min": 1000}, "size": [1, 77], "styles": "s1"}
    )
    assert RETRIEVER.notes(Query(["i1"], filters=filters)) == [
        "filters.topic_l1: no item has 'zz'",
        "filters.where.brand: no item has 'zoe'; did you mean 'Zoë'?",
        "filters.where.price: no item has a value in this range",
        "filters.where.size: no item has 77",
    ]
    assert RETRIEVER.notes(Query(["i1"], filters=Filters(where={"brand": "Zoë"}), away_from=["i5", "gone"])) == [
        "away_from: the index does not know 'gone'"
    ]
    boosted = Query(["i1"], boosts={"brand": {"acm": 2.0, "acme": 2.0}, "size": {"3": 2.0, 9: 2.0}})
    assert RETRIEVER.notes(boosted) == [
        "boosts.brand: no item has 'acm'; did you mean 'acme'?",
        "boosts.size: no item has 9",
    ]
    many = Query(["i1"], filters=Filters(where={"size": list(range(100))}))
    assert RETRIEVER.notes(many) == [
        *(f"filters.where.size: no item has {size}" for size in (6, 7, 8)),
        "filters.where.size: nor any of 91 more of these values",
    ]
    fresh = pa.table({"item_id": ["new"], "brand": pa.array([["nova"]], pa.list_(pa.string()))})
    more = RETRIEVER.with_added(fresh, {head: unit(9)[:1] for head in HEADS})
    nova = Query(["i1"], k=5, filters=Filters(where={"brand": "nova"}))
    assert RETRIEVER.notes(nova) == ["filters.where.brand: no item has 'nova'"]
    assert more.notes(nova) == []
    assert [answer.item for answer in more.retrieve(nova)[0]] == ["new"]


# ---- caps and diversity

max_per = st.fixed_dictionaries(
    {}, optional={name: st.integers(1, 4) for name in ("brand", "styles", "topic_l1", "topic_l2", "size")}
)


def keys(item: int, caps: dict[str, int], trigger: int = -1) -> list[tuple[str, Any]]:
    found = [(name, value) for name in caps if name != "trigger" for value in values_of(item, name)]
    return found + ([("trigger", trigger)] if "trigger" in caps else [])


def replay(
    answers: Sequence[RetrievedItem],
    ranked: dict[str, dict[int, float]],
    quotas: dict[str, int],
    caps: dict[str, int],
    diversity: float,
) -> None:
    """Checks that each answer was the best that its head could take at its turn, and that nothing is left to take."""
    counts: Counter[tuple[str, Any]] = Counter()
    taken: list[int] = []
    stretched = {}
    for head, scores in ranked.items():
        low, high = min(scores.values()), max(scores.values())
        stretched[head] = {item: (score - low) / (high - low) for item, score in scores.items()}

    def free(head: str) -> list[int]:
        return [
            item
            for item in ranked[head]
            if item not in taken and all(counts[key] < caps[key[0]] for key in keys(item, caps))
        ]

    def worth(head: str, item: int) -> float:
        cosines = [float(VECTORS["relevance"][item] @ VECTORS["relevance"][other]) for other in taken]
        return (1 - diversity) * stretched[head][item] - diversity * max([0.0, *cosines])

    by_head = {head: [number(answer) for answer in answers if answer.head == head] for head in ranked}
    turns = [(head, item) for head in ranked for item in by_head[head][: quotas[head]]]
    turns += [(head, item) for head in ranked for item in by_head[head][quotas[head] :]]
    for head, item in turns:
        could = free(head)
        assert item in could
        assert worth(head, item) >= max(worth(head, other) for other in could) - 1e-5
        taken.append(item)
        counts.update(keys(item, caps))
    if len(answers) < sum(quotas.values()):
        assert not any(free(head) for head in ranked)
    for head in ranked:  # who was short at its first turn had nothing left
        assert len(by_head[head]) >= quotas[head] or not free(head)


@settings(deadline=None, max_examples=80)
@given(
    max_per, st.sampled_from([0.0, 0.0, 0.2, 0.7, 1.0]), st.integers(0, NUM_ITEMS - 1), st.integers(1, 25),
    st.sampled_from([0, 30, 50, 100]),
)  # fmt: skip
def test_each_answer_is_the_best_that_caps_and_diversity_leave(
    caps: dict[str, int], diversity: float, trigger: int, k: int, alpha: float
) -> None:
    found = RETRIEVER.retrieve(Query([f"i{trigger}"], k=k, alpha=alpha, max_per=caps, diversity=diversity))[0]
    quotas = dict(zip(HEADS, head_quotas(head_shares(alpha, 2), k), strict=True))
    ranked = {
        head: {
            item: float(VECTORS[head][item] @ VECTORS[head][trigger]) for item in range(NUM_ITEMS) if item != trigger
        }
        for head in HEADS
        if quotas[head]  # another one is not asked
    }
    assert {answer.head for answer in found} <= set(ranked)
    replay(found, ranked, quotas, caps, diversity)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["topic_l1", "topic_l2", "size"]), st.integers(1, 5), st.integers(0, NUM_ITEMS - 1),
    st.integers(1, 12), st.integers(12, 40),
)  # fmt: skip
def test_a_head_looks_further_where_a_cap_uses_its_candidates_up(
    column: str, most: int, trigger: int, k: int, k_ann: int
) -> None:
    """With few candidates a head the same answers as with all items for candidates."""
    query = {"k": k, "max_per": {column: most}, "alpha": 50}
    few, of_all = (RETRIEVER.retrieve(Query([f"i{trigger}"], k_ann=width, **query))[0] for width in (k_ann, NUM_ITEMS))
    assert [(answer.item, answer.head, answer.trigger) for answer in few] == [
        (answer.item, answer.head, answer.trigger) for answer in of_all
    ]
    # Another number of candidates is another product, whose sums some processors take in another order.
    for name in ("score", "similarity"):
        scores = [getattr(answer, name) for answer in few]
        assert scores == pytest.approx([getattr(answer, name) for answer in of_all], abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=6, unique=True),
    st.integers(1, 30),
    st.fixed_dictionaries({}, optional={"trigger": st.integers(1, 4), "topic_l2": st.integers(1, 3)}).filter(bool),
)
def test_a_users_list_under_caps(history: list[int], k: int, caps: dict[str, int]) -> None:
    query = Query(history=[f"i{item}" for item in history], k=k, k_trigger=NUM_ITEMS, alpha=50, max_per=caps)
    found = RETRIEVER.retrieve_user(query)
    quotas = dict(zip(HEADS, head_quotas([0.5, 0.5], k), strict=True))
    best: dict[str, dict[int, tuple[float, int]]] = {head: {} for head in HEADS}
    for head in HEADS:
        for item in set(range(NUM_ITEMS)) - set(history):
            similarity = {trigger: float(VECTORS[head][trigger] @ VECTORS[head][item]) for trigger in history}
            trigger = max(history, key=lambda trigger: similarity[trigger])
            best[head][item] = (similarity[trigger], trigger)
    taken: dict[int, tuple[str, int]] = {}
    counts: Counter[tuple[str, Any]] = Counter()
    for full in (False, True):
        for head in HEADS:
            for item, (_, trigger) in sorted(best[head].items(), key=lambda pair: -pair[1][0]):
                count = sum(brought == head for brought, _ in taken.values())
                room = len(taken) < k if full else count < quotas[head]
                counted = keys(item, caps, trigger)
                if room and item not in taken and all(counts[key] < caps[key[0]] for key in counted):
                    taken[item] = (head, trigger)
                    counts.update(counted)
    assert {number(answer): (answer.head, int(str(answer.trigger)[1:])) for answer in found} == taken
    scores = [answer.score for answer in found]
    assert scores == sorted(scores, reverse=True)


# ---- boosts, and items to move away from


@settings(deadline=None, max_examples=60)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "brand": st.sampled_from([{"acme": 2.0}, {"acme": 0.5, "Zoë": 3.0}]),
            "styles": st.just({"s1": 1.5, "s2": 0.25}),
            "size": st.sampled_from([{2: 4.0}, {"2": 4.0}]),
            "item_id": st.just({"i3": 5.0, "i4": 0.1}),
        },
    ),
    st.lists(st.integers(0, NUM_ITEMS - 1), max_size=3, unique=True),
    st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=3, unique=True),
    st.sampled_from(HEADS),
)
def test_factors_on_scores(boosts: dict[str, Any], away: list[int], triggers: list[int], head: str) -> None:
    shares = {head: 1.0}
    query = Query(
        [f"i{trigger}" for trigger in triggers], k=15, shares=shares, boosts=boosts, away_from=[f"i{a}" for a in away]
    )
    likeness = VECTORS["relevance"].astype(np.float64)

    def factor(item: int) -> float:
        found = 1.0
        for column, by_value in boosts.items():
            for value, times in by_value.items():
                typed = int(value) if column == "size" else value
                found *= times if typed in values_of(item, column) else 1.0
        nearest = max([0.0, *(float(likeness[item] @ likeness[other]) for other in away)])
        return found * (1.0 - min(1.0, nearest))

    def adjusted(item: int, similarity: float) -> float:
        return similarity * factor(item) if similarity >= 0 else similarity / factor(item)

    for trigger, found in zip(triggers, RETRIEVER.retrieve(query), strict=True):
        similarity = VECTORS[head].astype(np.float64) @ VECTORS[head][trigger]
        candidates = set(range(NUM_ITEMS)) - {trigger, *away}
        worth = {item: adjusted(item, float(similarity[item])) for item in candidates}
        assert [worth[number(answer)] for answer in found] == pytest.approx(
            sorted(worth.values(), reverse=True)[:15], abs=1e-4
        )
        engaged = VECTORS[HEADS[0]].astype(np.float64) @ VECTORS[HEADS[0]][trigger]
        for answer in found:
            item = number(answer)
            assert answer.similarity == pytest.approx(float(similarity[item]), abs=1e-5)
            assert answer.score == pytest.approx(adjusted(item, float(engaged[item])), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"boosts": {"brnd": {"acme": 2.0}}}, r"boosts\.brnd: no column 'brnd'.*did you mean 'brand'"),
        ({"boosts": {"brand": {"acme": 0.0}}}, r"boosts\.brand: 'acme' is 0\.0, expected a factor above 0"),
        ({"boosts": {"size": {"large": 2.0}}}, r"boosts\.size: this column holds whole numbers, not 'large'"),
        ({"max_per": {"bran": 2}}, r"max_per\.bran: no column 'bran'.*did you mean 'brand'"),
        ({"max_per": {"brand": 0}}, r"max_per\.brand: 0, expected at least 1"),
        ({"max_per": {"trigger": 2}}, r"max_per\.trigger: only the list of a history has several triggers"),
        ({"diversity": 1.5}, r"diversity: 1\.5, expected a number from 0 to 1"),
        ({"away_from": "i2"}, r"expected a list of ids, got 'i2'"),
    ],
)
def test_what_does_not_fit_is_named(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RETRIEVER.retrieve(Query(["i1"], **asked))


def test_popular_answers_keep_to_caps() -> None:
    defaults = RetrievalConfig(k=10, k_ann=NUM_ITEMS, num_probes=12, unknown="popular")
    retriever = Retriever(
        {HEADS[0]: build_ivf(VECTORS[HEADS[0]], num_clusters=2)},
        {HEADS[0]: VECTORS[HEADS[0]]},
        Catalogue(StoredItems.of(ITEMS)),
        defaults,
        preranker=HeadScorePreranker(),
        sorter=HeadScorePreranker(),
    )
    found = retriever.retrieve_user(Query(history=["gone"], k=9, max_per={"topic_l1": 3, "trigger": 1}))
    by_count = sorted(range(NUM_ITEMS), key=lambda item: -ROWS[item]["train_count"])
    expected: list[int] = []
    counts: Counter[str] = Counter()
    for item in by_count:
        if counts[ROWS[item]["topic_l1"]] < 3 and len(expected) < 9:
            expected.append(item)
            counts[ROWS[item]["topic_l1"]] += 1
    assert [number(answer) for answer in found] == expected
