"""Filters, users' lists, shares of many heads: what comes back is what an exact search over the allowed items gives."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ivf_in_memory import build_ivf

from mtmh.config import RetrievalConfig
from mtmh.data.arrays import Indices, Scores
from mtmh.data.item_vectors import StackedVectors
from mtmh.index.item_store import StoredItems
from mtmh.retrieval import head_search
from mtmh.retrieval.answers import RetrievedItem
from mtmh.retrieval.catalogue import Catalogue, UnknownItemError
from mtmh.retrieval.filters import Filters
from mtmh.retrieval.head_search import HeadSearch
from mtmh.retrieval.merge import head_quotas, named_shares
from mtmh.retrieval.query import Query
from mtmh.retrieval.ranking import Candidates, HeadScorePreranker, Requests
from mtmh.retrieval.retriever import Retriever
from mtmh.retrieval.timings import Timings

NUM_ITEMS, DIM = 300, 8
HEADS = ["engagement", "relevance", "visual"]
COARSE = ["a", "b", None]


def unit(rng: np.random.Generator, rows: int) -> np.ndarray:
    vectors = rng.normal(size=(rows, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = {head: unit(np.random.default_rng(place), NUM_ITEMS) for place, head in enumerate(HEADS)}
ITEMS = pa.table(
    {
        "item_id": [f"i{item}" for item in range(NUM_ITEMS)],
        "text": [f"item {item}" for item in range(NUM_ITEMS)],
        "topic_l1": [COARSE[item % 3] for item in range(NUM_ITEMS)],
        "topic_l2": [f"{item % 3}{item % 10}" for item in range(NUM_ITEMS)],
        "train_count": [(item * 7) % 50 for item in range(NUM_ITEMS)],
        "first_seen": pa.array([None if item % 11 == 0 else 1000 + item for item in range(NUM_ITEMS)], pa.int64()),
    }
)
INDEXES = {head: build_ivf(VECTORS[head], num_clusters=30) for head in HEADS}


def make_retriever(heads: Sequence[str] = HEADS, **defaults: Any) -> Retriever:
    return Retriever(
        {head: INDEXES[head] for head in heads},
        {head: VECTORS[head] for head in heads},
        Catalogue(StoredItems.of(ITEMS)),
        RetrievalConfig(**{"k": 10, "k_ann": 40, "num_probes": 2, "alpha": 50} | defaults),
        preranker=HeadScorePreranker(),
        sorter=HeadScorePreranker((heads[0], VECTORS[heads[0]])),
    )


RETRIEVER = make_retriever()


def naive_allowed(filters: Filters, history: Sequence[int] = ()) -> list[int]:
    allowed = []
    for item, row in enumerate(ITEMS.to_pylist()):
        seen = filters.exclude_seen and item in history
        old = filters.min_first_seen is not None and (row["first_seen"] or 10**12) < filters.min_first_seen
        wrong = [
            wanted is not None and row[level] not in wanted
            for level, wanted in (("topic_l1", filters.topic_l1), ("topic_l2", filters.topic_l2))
        ]
        listed = filters.allow is None or row["item_id"] in filters.allow
        if listed and not (seen or old or any(wrong) or row["item_id"] in filters.exclude):
            allowed.append(item)
    return allowed


def naive_list(head: str, trigger: int, allowed: Sequence[int], k: int) -> list[int]:
    similarity = VECTORS[head].astype(np.float64) @ VECTORS[head][trigger].astype(np.float64)
    return sorted((item for item in allowed if item != trigger), key=lambda item: -similarity[item])[:k]


def items_of(answers: list[RetrievedItem]) -> list[int]:
    return [int(str(answer.item)[1:]) for answer in answers]


ids = st.lists(st.integers(0, NUM_ITEMS + 20).map("i{}".format), max_size=NUM_ITEMS)
any_filters = st.builds(
    Filters,
    exclude=ids,
    allow=st.none() | ids,
    exclude_seen=st.booleans(),
    min_first_seen=st.none() | st.integers(990, 1310),
    topic_l1=st.none() | st.lists(st.sampled_from(["a", "b", "nowhere"]), max_size=3),
    topic_l2=st.none() | st.lists(st.sampled_from(["00", "13", "29", "nowhere"]), max_size=3),
)
many = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("scanned", [0, 100, 10**6])
@many
@given(any_filters, st.integers(0, NUM_ITEMS - 1), st.integers(1, 40), st.integers(1, 30))
def test_k_allowed_answers_whenever_there_are_k(
    monkeypatch: pytest.MonkeyPatch, scanned: int, filters: Filters, trigger: int, k: int, num_probes: int
) -> None:
    monkeypatch.setattr(head_search, "SCANNED_ITEMS", scanned)
    allowed = naive_allowed(filters)
    found = items_of(
        RETRIEVER.retrieve(Query([f"i{trigger}"], k=k, k_ann=max(k, 20), num_probes=num_probes, filters=filters))[0]
    )
    assert set(found) <= set(allowed) - {trigger}
    assert len(found) == len(set(found)) == min(k, len(set(allowed) - {trigger}))


@pytest.mark.parametrize("scanned", [0, 10**6])
@many
@given(any_filters, st.integers(0, NUM_ITEMS - 1), st.integers(1, 40), st.sampled_from(HEADS))
def test_with_all_clusters_probed_a_head_answers_as_exact_search_does(
    monkeypatch: pytest.MonkeyPatch, scanned: int, filters: Filters, trigger: int, k: int, head: str
) -> None:
    monkeypatch.setattr(head_search, "SCANNED_ITEMS", scanned)
    found = RETRIEVER.retrieve(Query([f"i{trigger}"], k=k, num_probes=30, filters=filters, shares={head: 1.0}))[0]
    assert items_of(found) == naive_list(head, trigger, naive_allowed(filters), k)
    assert {answer.head for answer in found} <= {head}


INFINITE = float("inf")


@pytest.mark.parametrize(
    ("costs", "few_of"),
    [((0.0,), 10**6), ((INFINITE,), 10**6), ((INFINITE, 0.0), 10**6), ((INFINITE,), 1)],
    ids=["all allowed ones compared", "index", "those near the triggers compared", "others dropped"],
)
@many
@given(any_filters, st.lists(st.integers(0, NUM_ITEMS - 1), min_size=2, max_size=12, unique=True), st.integers(1, 40))
def test_every_way_to_search_among_allowed_items_finds_the_same(
    monkeypatch: pytest.MonkeyPatch,
    costs: Sequence[float],
    few_of: int,
    filters: Filters,
    triggers: list[int],
    k: int,
) -> None:
    monkeypatch.setattr(head_search, "SCANNED_ITEMS", 0)
    monkeypatch.setattr(head_search, "_FEW_OF", few_of)
    monkeypatch.setattr(head_search, "_SPARE", 1)  # often too few
    next_cost = itertools.cycle(costs)
    monkeypatch.setattr(head_search, "_scan_cost", lambda num_items, num_queries: next(next_cost))
    asked = [f"i{trigger}" for trigger in triggers]
    lists = RETRIEVER.retrieve(Query(asked, k=k, num_probes=30, filters=filters, shares={"visual": 1.0}))
    allowed = naive_allowed(filters)
    assert [items_of(found) for found in lists] == [naive_list("visual", trigger, allowed, k) for trigger in triggers]


def test_a_filter_is_answered_from_the_clusters_near_the_triggers() -> None:
    search = HeadSearch(INDEXES["visual"], StackedVectors(VECTORS["visual"]))
    allowed = np.flatnonzero(np.arange(NUM_ITEMS) % 3 > 0)
    queries = VECTORS["visual"][[4, 5]]
    near = search._near(queries, allowed, 30, compared=20.0)
    for query in queries:
        visited = INDEXES["visual"].nearest(query[None, :], 30).clusters[0]
        members = [allowed[INDEXES["visual"].clusters_of_items[allowed] == cluster] for cluster in visited]
        enough = next(count for count in range(31) if sum(map(len, members[:count])) >= 20)
        assert set(np.concatenate(members[:enough])) <= set(near)
    assert 20 <= len(near) < len(allowed)
    np.testing.assert_array_equal(search._near(queries, allowed, 30, compared=INFINITE), allowed)


def watched(monkeypatch: pytest.MonkeyPatch, noted: Callable[[Indices, int], int]) -> list[int]:
    """Notes something of every search from here on."""
    notes: list[int] = []
    search = HeadSearch.search

    def watching(self: HeadSearch, triggers: Indices, k: int, **settings: Any) -> Any:
        notes.append(noted(triggers, k))
        return search(self, triggers, k, **settings)

    monkeypatch.setattr(HeadSearch, "search", watching)
    return notes


def test_no_more_is_searched_for_than_is_kept_where_nothing_re_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = watched(monkeypatch, lambda triggers, k: k)
    query = Query(["i5", "i9", "i5"], k=7, k_ann=200)
    found = RETRIEVER.retrieve(query)
    assert set(widths) == {7}
    widths.clear()
    assert RETRIEVER.retrieve(replace(query, boosts={"topic_l1": {"a": 1.0}})) == found
    assert set(widths) == {200}, "factors re-rank"
    retriever = make_retriever()
    retriever.preranker = HeadScorePreranker(("relevance", VECTORS["relevance"]))
    widths.clear()
    retriever.retrieve(query)
    assert set(widths) == {200}, "another head re-ranks"


def test_a_trigger_that_comes_twice_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = watched(monkeypatch, lambda triggers, k: len(triggers))
    first, second, again = RETRIEVER.retrieve(Query(["i9", "i5", "i9"]))
    assert set(sizes) == {2}
    assert first == again == RETRIEVER.retrieve(Query(["i9"]))[0]
    assert second == RETRIEVER.retrieve(Query(["i5"]))[0]


shares_of_heads = st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any)


@many
@given(shares_of_heads, st.integers(1, 30), st.integers(0, NUM_ITEMS - 1))
def test_shares_of_many_heads(weights: list[int], k: int, trigger: int) -> None:
    shares = {head: weight / sum(weights) for head, weight in zip(HEADS, weights, strict=True)}
    quotas = head_quotas(named_shares(shares, HEADS), k)
    found = RETRIEVER.retrieve(Query([f"i{trigger}"], k=k, num_probes=30, shares=shares))[0]
    assert len({answer.item for answer in found}) == k
    assert [sum(answer.head == head for answer in found) for head in HEADS] == quotas
    for head in HEADS:
        ranks = [
            naive_list(head, trigger, range(NUM_ITEMS), NUM_ITEMS).index(item)
            for item in items_of([answer for answer in found if answer.head == head])
        ]
        assert ranks == sorted(ranks), "each head's items keep that head's order"


@pytest.mark.parametrize(("alpha", "head"), [(100, "engagement"), (0, "relevance")])
def test_an_alpha_at_an_end_is_one_head(alpha: float, head: str) -> None:
    retriever = make_retriever(HEADS[:2])
    for filters in (Filters(), Filters(topic_l1=["a"])):
        found = retriever.retrieve(Query(["i5", "i9"], alpha=alpha, num_probes=30, filters=filters))
        alone = retriever.retrieve(Query(["i5", "i9"], shares={head: 1.0}, num_probes=30, filters=filters))
        assert found == alone


def naive_user(history: Sequence[int], quotas: Sequence[int], allowed: Sequence[int], keep: int) -> list[tuple]:
    """(item, head, trigger) by the rule in ``retrieve_user``, one item at a time."""
    pools: list[list[tuple[float, int, int]]] = []
    for head in HEADS:
        best: dict[int, tuple[float, int]] = {}
        for trigger in history:
            for item in naive_list(head, trigger, allowed, keep):
                similarity = float(VECTORS[head][trigger] @ VECTORS[head][item])
                if item not in best or similarity > best[item][0]:
                    best[item] = (similarity, trigger)
        # Two triggers that bring each other tie; the one that comes first in the history is asked first.
        places = [(score, item, trigger) for item, (score, trigger) in best.items()]
        pools.append(sorted(places, key=lambda place: (-place[0], history.index(place[2]))))
    taken: dict[int, tuple[str, int]] = {}
    for full in (False, True):
        for head, pool, quota in zip(HEADS, pools, quotas, strict=True):
            for _, item, trigger in pool:
                count = sum(brought_by == head for brought_by, _ in taken.values())
                room = len(taken) < sum(quotas) if full else count < quota
                if room and item not in taken:
                    taken[item] = (head, trigger)
    score = {item: float(VECTORS[HEADS[0]][trigger] @ VECTORS[HEADS[0]][item]) for item, (_, trigger) in taken.items()}
    return [(item, *taken[item]) for item in sorted(taken, key=lambda item: -score[item])]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=12),
    shares_of_heads,
    st.integers(1, 60),
    st.booleans(),
    st.none() | st.just(["a"]),
)
def test_a_users_list_is_the_quota_merge_of_the_pools(
    history: list[int], weights: list[int], k: int, exclude_seen: bool, topics: list[str] | None
) -> None:
    filters = Filters(exclude_seen=exclude_seen, topic_l1=topics)
    shares = {head: weight / sum(weights) for head, weight in zip(HEADS, weights, strict=True)}
    found = RETRIEVER.retrieve_user(
        Query(
            history=[f"i{item}" for item in history],
            k=k,
            k_trigger=60,
            num_probes=30,
            k_ann=300,
            shares=shares,
            filters=filters,
        )
    )
    allowed = naive_allowed(filters, history)
    latest_first = list(dict.fromkeys(reversed(history)))
    expected = naive_user(latest_first, head_quotas(named_shares(shares, HEADS), k), allowed, 60)
    assert [(answer.item, answer.head, answer.trigger) for answer in found] == [
        (f"i{item}", head, f"i{trigger}") for item, head, trigger in expected
    ]
    scores = [answer.score for answer in found]
    assert scores == sorted(scores, reverse=True)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=50), st.integers(1, 200), any_filters)
def test_a_user_gets_k_items_whenever_there_are_k(history: list[int], k: int, filters: Filters) -> None:
    found = items_of(RETRIEVER.retrieve_user(Query(history=[f"i{item}" for item in history], k=k, filters=filters)))
    allowed = set(naive_allowed(filters, history))
    if len(set(history)) == 1:
        allowed -= set(history)
    assert set(found) <= allowed
    assert len(found) == len(set(found)) == min(k, len(allowed))


def test_a_preranker_sees_a_history_from_its_latest_item_on() -> None:
    class Noting(HeadScorePreranker):
        def score(self, requests: Requests, candidates: Candidates) -> Scores:
            seen.append(requests.histories.tolist())
            return super().score(requests, candidates)

    seen: list[list[list[int]]] = []
    retriever = make_retriever(unknown="popular")
    retriever.preranker = Noting()
    retriever.retrieve_user(Query(history=["i7", "i250", "new", "i3", "i7", "i90"], k=5))
    assert seen
    assert all(histories == [[90, 7, 3, 250]] for histories in seen)


def test_unknown_triggers_are_an_error_or_answered_with_popular_items() -> None:
    with pytest.raises(UnknownItemError, match="unknown trigger 'new'"):
        RETRIEVER.retrieve(Query(["i1", "new"]))
    with pytest.raises(UnknownItemError, match="unknown history: 'new', 'newer'"):
        RETRIEVER.retrieve_user(Query(history=["new", "newer"]))
    assert RETRIEVER.retrieve_user(Query(history=["new", "i1"])) == RETRIEVER.retrieve_user(Query(history=["i1"]))
    assert RETRIEVER.unknown(Query(history=["new", "i1", "newer", "new"])) == ["new", "newer"]
    retriever = make_retriever(unknown="popular")
    known, popular = retriever.retrieve(Query(["i1", "new"], k=5, filters=Filters(topic_l1=["b"])))
    assert known == retriever.retrieve(Query(["i1"], k=5, filters=Filters(topic_l1=["b"])))[0]
    counts = ITEMS.column("train_count").to_pylist()
    expected = sorted(naive_allowed(Filters(topic_l1=["b"])), key=lambda item: -counts[item])[:5]
    assert items_of(popular) == expected
    assert {(answer.head, answer.similarity, answer.trigger) for answer in popular} == {("popular", None, "new")}
    assert popular[0].score == pytest.approx(counts[expected[0]] / sum(counts))
    assert retriever.retrieve_user(Query(history=["i1", "new"])) == retriever.retrieve_user(Query(history=["i1"]))
    assert {answer.head for answer in retriever.retrieve_user(Query(history=["new"]))} == {"popular"}
    with pytest.raises(ValueError, match="history is empty"):
        retriever.retrieve_user(Query(history=[]))


def test_one_id_in_the_place_of_a_list_is_refused() -> None:
    """Its characters are ids, too: of digits, perhaps those of other items."""
    for ask in (
        lambda: RETRIEVER.retrieve(Query("i1")),
        lambda: RETRIEVER.retrieve_user(Query(history="i1")),
        lambda: RETRIEVER.retrieve(Query(["i1"], filters=Filters(exclude="i2"))),
        lambda: RETRIEVER.retrieve(Query(["i1"], filters=Filters(allow="i2"))),
        lambda: RETRIEVER.with_removed("i1"),
    ):
        with pytest.raises(ValueError, match=r"expected a list of ids, got 'i\d'"):
            ask()
    with pytest.raises(ValueError, match="k_trigger is 0, expected at least 1"):
        RETRIEVER.retrieve_user(Query(history=["i1"], k_trigger=0))


def test_stages_are_timed() -> None:
    timings = Timings()
    RETRIEVER.retrieve(Query(["i1"]), timings)
    RETRIEVER.retrieve_user(Query(history=["i1", "i2"]), timings)
    assert list(timings.seconds) == ["embed", "search", "prerank", "merge", "describe"]
    assert all(seconds > 0.0 for seconds in timings.seconds.values())


def test_describe_leaves_unknown_items_empty() -> None:
    known, unknown = RETRIEVER.describe(["i4", "new"])
    assert (known.text, known.topic_l1, known.topic_l2) == ("item 4", "b", "14")
    assert (unknown.text, unknown.topic_l1, unknown.topic_l2) == ("", "", "")
