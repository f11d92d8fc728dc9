"""The parameters of the lookup benchmark: bytes, indices, sweeps, memory."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.lookup.cases import (
    FORWARD,
    SHARDINGS,
    TRAIN,
    Case,
    evenly,
    index_sets,
    measurements,
    preset,
    zipf_indices,
)
from benchmarks.lookup.machine import copy_bandwidth, describe, gather_bandwidth
from benchmarks.lookup.runner import required_bytes


def test_moved_bytes_are_rows_read_and_in_backward_read_and_written() -> None:
    case = Case(rows=1000, width=128, pooling=20, batch=2048, tables=3)
    assert case.lookups == 3 * 2048 * 20
    assert case.moved_bytes(FORWARD) == 3 * 2048 * 20 * 512
    assert case.moved_bytes(TRAIN) == 3 * case.moved_bytes(FORWARD)


@pytest.mark.parametrize(
    ("dtype", "width", "expected"),
    [("fp32", 32, 128), ("fp16", 32, 64), ("int8", 32, 48), ("int8", 128, 144), ("int8", 12, 16)],
)
def test_row_bytes(dtype: str, width: int, expected: int) -> None:
    case = Case(rows=10, width=width, dtype=dtype, tables=2)
    assert case.row_bytes == expected
    assert case.table_bytes == 2 * 10 * expected


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 10**8), st.sampled_from([0.0, 0.3, 0.8, 1.0, 1.2]), st.integers(0, 2**31))
def test_zipf_indices_stay_in_the_table(rows: int, skew: float, seed: int) -> None:
    drawn = zipf_indices(rows, 500, skew, torch.Generator().manual_seed(seed))
    assert drawn.dtype == torch.int64
    assert drawn.shape == (500,)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < rows


@pytest.mark.parametrize("skew", [0.0, 0.5, 1.0, 1.2])
def test_zipf_frequencies_follow_the_integrated_density(skew: float) -> None:
    rows, count = 50, 400_000
    drawn = zipf_indices(rows, count, skew, torch.Generator().manual_seed(3)).numpy()
    edges = np.arange(1, rows + 2, dtype=np.float64)
    primitive = np.log(edges) if skew == 1.0 else edges ** (1 - skew) / (1 - skew)
    expected = np.diff(primitive) / (primitive[-1] - primitive[0])
    found = np.bincount(drawn, minlength=rows) / count
    assert np.allclose(np.sort(found)[::-1], expected, atol=4 * np.sqrt(expected.max() / count))
    if skew:
        first, second = np.argsort(found)[::-1][:2]
        assert abs(int(first) - int(second)) > 1  # popular rows are not neighbours


def test_index_sets_differ_and_outgrow_the_cache() -> None:
    case = Case(rows=100_000, width=64, pooling=10, batch=100)  # 256,000 bytes a set
    sets = index_sets(case, cache_bytes=500_000)
    assert len(sets) == 8
    assert all(indices.shape == (1000,) for indices in sets)
    assert not torch.equal(sets[0], sets[1])
    assert torch.equal(sets[0], index_sets(case, cache_bytes=500_000)[0])  # the same in every process
    assert len(index_sets(case, cache_bytes=1)) == 4
    assert len(index_sets(case, cache_bytes=10**9)) == 32


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["smoke", "quick", "full"])
def test_a_preset_changes_one_factor_at_a_time(name: str, device: str) -> None:
    chosen = preset(name, device, threads=4, ranks=2)
    found = list(measurements(chosen, device, ranks=2))
    for measurement in found:
        if measurement.sweep in chosen.values:
            assert replace(chosen.base, **{measurement.sweep: measurement.x}) == measurement.case
        if measurement.case.dtype == "int8":
            assert (measurement.mode, measurement.kernel) in {(FORWARD, "tbe"), (FORWARD, "ebc")}
    assert {measurement.kernel for measurement in found} >= {"embedding_bag", "tbe", "ebc"} | {
        f"sharded:{sharding}" for sharding in SHARDINGS
    }
    if name == "full":
        for factor, low, high in (("rows", 1e5, 1e8), ("width", 32, 512), ("pooling", 1, 100), ("skew", 0, 1.2)):
            values = [float(measurement.x) for measurement in found if measurement.sweep == factor]
            assert (min(values), max(values)) == (low, high)
    assert not [measurement for measurement in measurements(chosen, device, ranks=0) if measurement.sharded]


def test_a_cut_run_has_covered_all_sweeps_alike() -> None:
    plan = list(measurements(preset("full", "cpu", threads=4, ranks=2), "cpu", ranks=2))
    order = evenly(plan)
    assert len(order) == len(plan)
    assert set(order) == set(plan)
    for sweep, values in {
        "rows": [1e5, 1e8, 3e6, 3e5, 1e7, 1e6, 3e7],
        "width": [32, 512, 128, 64, 256],
        "dtype": ["fp32", "int8", "fp16"],
    }.items():
        assert list(dict.fromkeys(measurement.x for measurement in order if measurement.sweep == sweep)) == values
    seen: dict[str, set[str | float]] = {measurement.sweep: set() for measurement in plan}
    of_sweep = {sweep: len({measurement.x for measurement in plan if measurement.sweep == sweep}) for sweep in seen}
    for measurement in order:  # before the third value of any sweep, each has its first two
        if measurement.x not in seen[measurement.sweep] and len(seen[measurement.sweep]) == 2:
            assert all(len(found) >= min(2, of_sweep[sweep]) for sweep, found in seen.items())
        seen[measurement.sweep].add(measurement.x)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="smoke, quick or full"):
        preset("huge", "cpu", 1, 0)


def test_memory_a_case_needs() -> None:
    case = Case(rows=100_000_000, width=128)
    assert required_bytes(case, sharded=False) == 2 * 100_000_000 * 512
    assert required_bytes(replace(case, dtype="int8"), sharded=False) == 100_000_000 * (512 + 2 * 144)
    assert required_bytes(replace(case, ranks=2), sharded=True) == 6 * 100_000_000 * 512


def test_limits_are_rates_of_this_machine() -> None:
    device = torch.device("cpu")
    case = Case(rows=5000, width=32, pooling=5, batch=100, tables=2)
    for limit in (
        gather_bandwidth(case, index_sets(case, 1), device, 0.0, 3),
        gather_bandwidth(replace(case, dtype="int8"), index_sets(case, 1), device, 0.0, 3),
        copy_bandwidth(device, 0.0, 3),
    ):
        assert 0 < limit.median <= limit.best < 1e13
    assert limit.times(8).best == 8 * limit.best
    described = json.loads(json.dumps(describe(device, threads=2)))
    assert described["threads"] == 2
    assert described["torch"] == torch.__version__
