"""A search that remembers answers as the search itself does."""

from __future__ import annotations

import numpy as np
import pytest

from mtmh.data.arrays import Indices
from mtmh.evaluation import remembered_search
from mtmh.evaluation.pipeline import Search
from mtmh.evaluation.remembered_search import RememberedSearch
from mtmh.retrieval.ranking import Candidates

NUM_ITEMS, K_ANN = 50, 12


class Index:
    """Finds few candidates of some triggers unless more are needed, with gaps or not."""

    def __init__(self, *, gaps: bool) -> None:
        self.gaps = gaps
        self.asked: list[int] = []

    def __call__(self, triggers: Indices, k: int, needed: int) -> Candidates:
        self.asked += triggers.tolist()
        width = K_ANN if self.gaps else k
        items = (triggers[:, None] + 1 + np.arange(width)) % NUM_ITEMS
        found_at_once = 3 + triggers % 10
        items[np.arange(width) >= np.where(found_at_once < needed, K_ANN, found_at_once)[:, None]] = -1
        if self.gaps:
            items[(items % 3 == 0)] = -1
        scores = np.where(items >= 0, -np.arange(width, dtype=np.float32), np.float32(-np.inf))
        return Candidates("head", items, scores)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("most", [1 << 20, 40])
def test_answers_are_those_of_the_search(gaps: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered_search, "_MOST_CANDIDATES", most)
    rng = np.random.default_rng(0)
    plain: Search = Index(gaps=gaps)
    search = RememberedSearch("head", Index(gaps=gaps), NUM_ITEMS)
    for k in (4, 8, 6, 12, 3, 12):
        triggers = np.sort(rng.permutation(NUM_ITEMS)[:15])
        for needed in (1, k // 2, k):
            expected, found = plain(triggers, k, needed), search(triggers, k, needed)
            for of_found, of_expected in zip(found.items, expected.items, strict=True):
                wanted = of_expected[of_expected >= 0]
                # There may be more behind gaps, which are looked at no less.
                assert of_found[of_found >= 0][: len(wanted)].tolist() == wanted.tolist()
            assert (np.isfinite(found.scores) == (found.items >= 0)).all()
            assert found.head == "head"


def test_what_is_known_is_not_searched_again() -> None:
    index = Index(gaps=False)
    search = RememberedSearch("head", index, NUM_ITEMS)
    search(np.arange(20), 8, 2)
    assert sorted(index.asked) == list(range(20))
    search(np.arange(10, 25), 5, 3)
    assert sorted(index.asked) == list(range(25))
