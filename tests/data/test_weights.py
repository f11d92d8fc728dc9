"""Pair weights against naive formulas."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_dataset import make_config, random_histories, write_dataset

from mtmh.config import PropensityConfig
from mtmh.data.item_table import IdColumn
from mtmh.data.weights import PairWeights, PropensityWeights, cosine_at_least, share_value

bags = st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=8)


@given(bags, st.data())
def test_items_share_a_value_other_than_unknown(values: list[list[int]], data: st.DataObject) -> None:
    column = IdColumn(
        np.array([value for bag in values for value in bag], np.int32),
        np.cumsum([0, *map(len, values)], dtype=np.int64),
    )
    item = st.integers(0, len(values) - 1)
    pairs = data.draw(st.lists(st.tuples(item, item), max_size=10))
    expected = [bool(set(values[a]) & set(values[b]) - {0}) for a, b in pairs]
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    assert share_value(column, first, second).tolist() == expected


def test_single_valued_features_give_the_same_answer_without_offsets() -> None:
    values = np.array([0, 1, 2, 1, 0], np.int32)
    first, second = np.divmod(np.arange(25), 5)
    fast = share_value(IdColumn(values, None), first, second)
    general = share_value(IdColumn(values, np.arange(6)), first, second)
    assert fast.tolist() == general.tolist()
    assert fast.sum() == 2 * 2 + 1  # items 1 and 3 in all ways, item 2 with itself


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5])
def test_cosine_threshold_leaves_out_items_without_content(threshold: float) -> None:
    content = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    content[[3, 7]] = 0.0
    first, second = (torch.from_numpy(part) for part in np.divmod(np.arange(400), 20))
    expected = [
        a not in (3, 7) and b not in (3, 7) and float(content[a].double() @ content[b].double()) >= threshold
        for a, b in zip(first, second, strict=True)
        if a != b
    ]
    other = first != second  # an item's cosine with itself is 1 to rounding only
    assert cosine_at_least(content, first, second, threshold)[other].tolist() == expected


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.5), (0.0, 1.0), (10.0, 0.0)])
def test_propensity_weights_have_mean_one_over_training_events(a: float, b: float) -> None:
    counts = np.array([0, 1, 4, 100, 0, 25, 65_535, 65_536, 900_000, 65_536], np.int64)
    weights = PropensityWeights(counts, PropensityConfig(a=a, b=b))(counts)
    known = counts > 0
    assert (weights[known] * counts[known]).sum() / counts.sum() == pytest.approx(1.0)
    ratio = (a + 100.0**b) / (a + 4.0**b)
    assert weights[2] / weights[3] == pytest.approx(ratio)


def test_the_scale_of_weights_takes_a_few_bytes_an_item() -> None:
    counts = np.arange(1 << 22, dtype=np.int64) % 3
    counts[17] = 1 << 30  # as many numbers as events of the most popular item would be 8 GB
    tracemalloc.start()
    PropensityWeights(counts, PropensityConfig())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * len(counts)


@pytest.mark.parametrize("on", ["trigger", "candidate", "both"])
@pytest.mark.parametrize(("a", "b"), [(1.0, 0.5), (0.0, 1.0), (7.0, 1.3)])
def test_propensity_weights_of_pairs_equal_the_formula(
    on: Literal["trigger", "candidate", "both"], a: float, b: float
) -> None:
    counts = np.array([3, 1, 4, 100, 0, 25], np.int64)
    items = np.array([3, 5, 1, 0])
    trigger, candidate = np.divmod(np.arange(16), 4)
    weights = PropensityWeights(counts, PropensityConfig(count_of=on, a=a, b=b))
    found = weights.of_pairs(counts[items], trigger, candidate)
    # The mean over a stream in which each item is as often as it counts.
    mean = np.mean([1.0 / (a + float(count) ** b) for count in counts for _ in range(count)])
    for place in range(16):
        expected = 1.0
        if on in ("trigger", "both"):
            expected /= mean * (a + float(counts[items[trigger[place]]]) ** b)
        if on in ("candidate", "both"):
            expected /= mean * (a + float(counts[items[candidate[place]]]) ** b)
        assert found[place] == pytest.approx(expected, rel=1e-6)


def test_weights_multiply_and_an_item_with_itself_weighs_nothing(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_histories(30))
    table = dataset.item_table
    config = make_config(
        tmp_path,
        pairs={"sim": {"kind": "feature", "feature": "brand", "boost": 3.0}},
        loss={"propensity": {"a": 1.0, "b": 0.5}},
    )
    items = np.arange(5, 25)
    trigger, candidate = np.divmod(np.arange(400), 20)
    weight = PairWeights(config.pairs.sim, config.loss.propensity, table, has_content=False)(
        table, items, trigger, candidate, torch.empty(20, 0)
    )
    propensity = PropensityWeights(table.train_count, PropensityConfig(a=1.0, b=0.5))(table.train_count[items])
    brand = np.asarray(table.columns["brand"].values)[items]
    for place in range(400):
        t, c = trigger[place], candidate[place]
        expected = 0.0 if t == c else propensity[t] * (3.0 if brand[t] == brand[c] != 0 else 1.0)
        assert weight[place] == pytest.approx(expected, rel=1e-6)


def test_settings_that_need_what_is_not_there(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_histories(5))
    config = make_config(tmp_path, pairs={"sim": {"kind": "feature", "feature": "colour"}})
    with pytest.raises(ValueError, match=r"'colour'.*item_id, brand, tags"):
        PairWeights(config.pairs.sim, config.loss.propensity, dataset.item_table, has_content=False)
    config = make_config(tmp_path, pairs={"sim": {"kind": "content"}})
    with pytest.raises(ValueError, match="content embeddings"):
        PairWeights(config.pairs.sim, config.loss.propensity, dataset.item_table, has_content=False)
