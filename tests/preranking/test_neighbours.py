"""The co-occurrence table against counting user by user, and what is added up of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tiny_preranker import tiny_config, write_inputs

from mtmh.data.dataset import Dataset, open_dataset
from mtmh.preranking import neighbours
from mtmh.preranking.evidence import history_weights
from mtmh.preranking.neighbours import Neighbours, cosine_neighbours, engagements, linear_neighbours


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("neighbours")
    write_inputs(root)
    return open_dataset(tiny_config(root).dataset_dir)


def users_of(dataset: Dataset) -> list[set[int]]:
    histories = dataset.history_reader().read(0)
    return [
        set(histories.items[a:b].tolist()) for a, b in zip(histories.offsets[:-1], histories.offsets[1:], strict=True)
    ]


def cosine(users: list[set[int]], a: int, b: int) -> float:
    both = sum(a in items and b in items for items in users)
    return both / math.sqrt(max(1, sum(a in items for items in users)) * max(1, sum(b in items for items in users)))


def test_neighbours_are_those_of_the_largest_cosine(dataset: Dataset) -> None:
    users = users_of(dataset)
    found = cosine_neighbours(engagements(dataset.history_reader(), dataset.num_items), 12)
    for item in range(0, dataset.num_items, 17):
        expected = sorted(cosine(users, item, other) for other in range(dataset.num_items) if other != item)[::-1]
        shown = found.items[item] >= 0
        np.testing.assert_allclose(found.weights[item][shown], expected[: shown.sum()], rtol=1e-3)
        assert shown.sum() == min(12, sum(value > 0 for value in expected))
        for other, value in zip(found.items[item][shown], found.weights[item][shown], strict=True):
            assert value == pytest.approx(cosine(users, item, int(other)), rel=1e-3)


def test_sums_over_a_history_count_each_item_by_its_weight(dataset: Dataset) -> None:
    table = cosine_neighbours(engagements(dataset.history_reader(), dataset.num_items), 30)
    rng = np.random.default_rng(0)
    histories = np.stack([rng.permutation(dataset.num_items)[:6] for _ in range(4)])
    histories[2, 3:] = -1
    histories[3] = [*histories[3, :5], dataset.num_items + 7]  # newer than the table
    candidates = rng.integers(-1, dataset.num_items + 9, (4, 50))
    weights = np.stack(history_weights(histories))
    added = table.sums(histories, weights)
    sums = added.of(candidates)
    np.testing.assert_array_equal(added.of_users(slice(1, 3)).of(candidates[1:3]), sums[:, 1:3])
    for user in range(4):
        for column, candidate in enumerate(candidates[user].tolist()):
            for kind in range(2):
                expected = 0.0
                for place, item in enumerate(histories[user].tolist()):
                    if 0 <= item < dataset.num_items:
                        at = np.flatnonzero(table.items[item] == candidate)
                        if candidate >= 0 and len(at):
                            expected += float(weights[kind, user, place]) * float(table.weights[item, at[0]])
                assert sums[kind, user, column] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    nearest = added.nearest(0, 9)
    np.testing.assert_array_equal(added.of_users(slice(1, 9)).nearest(0, 9), nearest[1:])
    everything = np.arange(dataset.num_items)[None, :].repeat(4, axis=0)
    totals = added.of(everything)[0]
    for user in range(4):
        best = np.sort(totals[user])[::-1][:9]
        np.testing.assert_allclose(totals[user][nearest[user][nearest[user] >= 0]], best[best > 0], rtol=1e-4)


def test_distinct_pairs_are_the_same_by_marking_and_by_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 5, 300), rng.integers(0, 40, 300).astype(np.int32)
    keys, place = neighbours.distinct_pairs(users, items)
    expected = sorted({(user, item) for user, item in zip(users.tolist(), items.tolist(), strict=True)})
    assert [(key >> 32, key & 0xFFFFFFFF) for key in keys.tolist()] == expected
    np.testing.assert_array_equal(keys[place], neighbours.pair_keys(users, items))
    monkeypatch.setattr(neighbours, "_CELLS_A_PAIR", 0)
    for marked, by_sorting in zip((keys, place), neighbours.distinct_pairs(users, items), strict=True):
        np.testing.assert_array_equal(marked, by_sorting)
    monkeypatch.setattr(neighbours, "_PACKED_BITS", 0)
    for marked, by_sorting in zip((keys, place), neighbours.distinct_pairs(users, items), strict=True):
        np.testing.assert_array_equal(marked, by_sorting)
    assert [len(part) for part in neighbours.distinct_pairs(users[:0], items[:0])] == [0, 0]


def test_a_table_is_written_read_and_cut_to_some_items(dataset: Dataset, tmp_path: Path) -> None:
    table = cosine_neighbours(engagements(dataset.history_reader(), dataset.num_items), 5)
    table.save(tmp_path / "table")
    read = Neighbours.load(tmp_path / "table", dataset.num_items)
    assert np.array_equal(read.items, table.items)
    with pytest.raises(ValueError, match=r"items\.npy"):
        Neighbours.load(tmp_path / "table", dataset.num_items + 1)
    rows = np.array([40, 3, dataset.num_items + 2, 17])
    cut = read.taken(rows)
    old_row = dict(enumerate(rows.tolist()))
    for new in (0, 1, 3):
        kept = [item for item in table.items[rows[new]].tolist() if item in rows.tolist()]
        assert [old_row[item] for item in cut.items[new].tolist() if item >= 0] == kept
    assert (cut.items[2] == -1).all()


def test_linear_weights_foretell_a_history_from_its_other_items(dataset: Dataset) -> None:
    engaged = engagements(dataset.history_reader(), dataset.num_items)
    table = linear_neighbours(engaged, 60, 50)
    counts = np.asarray(engaged.sum(axis=0)).ravel()
    known = np.argsort(-counts, kind="stable")[:50]
    full = np.zeros((50, 50))
    at = {item: place for place, item in enumerate(known.tolist())}
    for item in known.tolist():
        shown = table.items[item] >= 0
        assert item not in table.items[item]
        full[at[item], [at[other] for other in table.items[item][shown].tolist()]] = table.weights[item][shown]
    assert (table.items[np.setdiff1d(np.arange(dataset.num_items), known)] == -1).all()
    # Column by column a ridge regression of an item on the others.
    users = engaged[:, known].toarray().astype(np.float64)
    for column in range(0, 50, 7):
        others = np.delete(np.arange(50), column)
        gram = users[:, others].T @ users[:, others] + 250.0 * np.eye(49)
        expected = np.linalg.solve(gram, users[:, others].T @ users[:, column])
        np.testing.assert_allclose(full[others, column], expected, atol=2e-4)
