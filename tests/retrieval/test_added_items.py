"""Items added since the build are found like those of the build, whether they are in lists or compared one by one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from ivf_in_memory import build_ivf

from mtmh.data.arrays import Mask
from mtmh.data.item_vectors import StackedVectors
from mtmh.index.storage import Storage
from mtmh.retrieval import head_search
from mtmh.retrieval.head_search import HeadSearch

NUM_ITEMS, NUM_ADDED, DIM = 3000, 900, 12


def unit(seed: int, count: int) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, DIM), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


BASE, ADDED = unit(0, NUM_ITEMS), unit(1, NUM_ADDED)
ALL = np.concatenate([BASE, ADDED])
TRIGGERS = np.array([3, NUM_ITEMS + 5, 77, NUM_ITEMS + 899, 2999])


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, storage: Storage) -> HeadSearch:
    """Additions in several steps; the last 50 are in no lists."""
    monkeypatch.setattr(head_search, "SCANNED_ADDED", 100)
    monkeypatch.setattr(head_search, "SCANNED_ITEMS", 100)
    found = HeadSearch(build_ivf(BASE, num_clusters=40, storage=storage), StackedVectors(BASE))
    for start, end in ((0, 90), (90, 400), (400, 850), (850, 900)):
        found = found.with_added(ADDED[start:end], listed=True)
    assert found._lists is not None
    assert found._lists.num_items == 850
    return found


def exact(allowed: Mask, k: int) -> list[list[int]]:
    scores = ALL[TRIGGERS].astype(np.float64) @ ALL.T
    scores[:, ~allowed] = -np.inf
    scores[np.arange(len(TRIGGERS)), TRIGGERS] = -np.inf
    return np.argsort(-scores, axis=1)[:, :k].tolist()


@pytest.mark.parametrize("storage", ["flat"])
@pytest.mark.parametrize("removed", [0, 20, 800])
def test_all_clusters_give_what_comparing_all_items_gives(search: HeadSearch, removed: int) -> None:
    allowed = np.ones(len(ALL), bool)
    gone = np.random.default_rng(2).permutation(NUM_ADDED)[:removed]
    allowed[NUM_ITEMS + gone] = False
    allowed[gone[: removed // 2]] = False
    items, scores = search.search(TRIGGERS, 30, num_probes=40, needed=30, allowed=None if allowed.all() else allowed)
    assert items.tolist() == exact(allowed, 30)
    expected = np.take_along_axis(ALL[TRIGGERS] @ ALL.T, items, axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("storage", ["flat"])
def test_few_clusters_give_what_an_index_of_all_items_gives(search: HeadSearch) -> None:
    items, _ = search.search(TRIGGERS, 30, num_probes=5, needed=30)
    whole = search.index
    clusters = whole.nearest(ALL, 1).clusters[:, 0]  # type: ignore[attr-defined]
    visited = whole.nearest(ALL[TRIGGERS], 5).clusters  # type: ignore[attr-defined]
    latest = np.arange(len(ALL)) >= NUM_ITEMS + 850
    for row, trigger in enumerate(TRIGGERS.tolist()):
        seen = np.isin(clusters, visited[row]) | latest
        seen[trigger] = False
        scores = np.where(seen, ALL @ ALL[trigger], -np.inf)
        assert items[row].tolist() == np.argsort(-scores)[:30].tolist()


@pytest.mark.parametrize("storage", ["fp16", "sq8"])
def test_every_storage_has_lists_of_added_items(search: HeadSearch) -> None:
    found, _ = search.search(TRIGGERS, 30, num_probes=40, needed=30)
    wanted = exact(np.ones(len(ALL), bool), 30)
    shares = [len(set(own) & set(best)) / 30 for own, best in zip(found.tolist(), wanted, strict=True)]
    assert np.mean(shares) > 0.9
    added = {item for own in wanted for item in own if item >= NUM_ITEMS}
    assert added
    assert len(added & set(found.ravel().tolist())) > 0.9 * len(added)


@pytest.mark.parametrize("storage", ["flat"])
def test_an_added_item_is_no_answer_where_it_was_not_found(search: HeadSearch) -> None:
    items, scores = search.search(TRIGGERS, 4000, num_probes=1, needed=1)
    assert ((items < 0) == np.isneginf(scores)).all()
    assert (items < 0).any()
    for row in items.tolist():
        found = [item for item in row if item >= 0]
        assert len(found) == len(set(found))


@pytest.mark.parametrize("storage", ["flat"])
def test_items_of_one_request_change_no_lists(search: HeadSearch) -> None:
    more = search.with_added(unit(5, 200), listed=False)
    assert more._lists is search._lists
    items, _ = more.search(np.array([len(ALL) + 7]), 5, num_probes=40, needed=5)
    scores = np.concatenate([ALL, unit(5, 200)]) @ unit(5, 200)[7]
    scores[len(ALL) + 7] = -np.inf
    assert items[0].tolist() == np.argsort(-scores)[:5].tolist()
