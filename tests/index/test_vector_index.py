"""IVF and exact search against NumPy."""

from pathlib import Path

import numpy as np
import pytest
from ivf_in_memory import build_ivf

from mtmh.index.storage import default_num_clusters
from mtmh.index.vector_index import ExactIndex, largest, read_faiss


def unit(rng: np.random.Generator, rows: int, dim: int = 16) -> np.ndarray:
    vectors = rng.normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def naive(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    similarity = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    items = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, items, axis=1), items


def test_exact_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng, 500), unit(rng, 20)
    scores, items = ExactIndex.build(vectors).search(queries, 30)
    expected_scores, expected_items = naive(vectors, queries, 30)
    np.testing.assert_array_equal(items, expected_items)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert (scores.dtype, items.dtype) == (np.float32, np.int64)


def test_ivf_with_all_clusters_probed_is_exact() -> None:
    rng = np.random.default_rng(1)
    vectors, queries = unit(rng, 2000), unit(rng, 50)
    index = build_ivf(vectors, num_clusters=40)
    scores, items = index.search(queries, 25, num_probes=10_000)
    expected_scores, expected_items = naive(vectors, queries, 25)
    np.testing.assert_array_equal(items, expected_items)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_fewer_probes_search_only_the_nearest_clusters() -> None:
    rng = np.random.default_rng(2)
    centres = unit(rng, 8)
    vectors = np.repeat(centres, 20, axis=0) + rng.normal(scale=0.01, size=(160, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = build_ivf(vectors, num_clusters=8)
    _, items = index.search(centres, 160, num_probes=1)
    for centre, row in enumerate(items):
        found = row[row >= 0]
        assert 0 < len(found) < 160
        assert centre in found // 20


def test_missing_answers_are_marked() -> None:
    vectors = unit(np.random.default_rng(3), 5)
    for index in (ExactIndex.build(vectors), build_ivf(vectors)):
        scores, items = index.search(vectors[:2], 9, num_probes=1)
        assert scores.shape == items.shape == (2, 9)
        assert sorted(items[0, :5]) == [0, 1, 2, 3, 4]
        assert (items[:, 5:] == -1).all()
        assert np.isneginf(scores[:, 5:]).all()


def test_build_is_seeded() -> None:
    vectors = unit(np.random.default_rng(4), 3000)
    searches = [
        build_ivf(vectors, num_clusters=30, train_sample=500, seed=seed).search(vectors[:200], 20, 1)[1]
        for seed in (7, 7, 8)
    ]
    np.testing.assert_array_equal(searches[0], searches[1])
    assert (searches[0] != searches[2]).any()


def test_memory_map_is_indexed_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtmh.index.vector_index._ADD_ROWS", 64)
    vectors = unit(np.random.default_rng(6), 200)
    np.save(tmp_path / "vectors.npy", vectors)
    index = ExactIndex.build(np.load(tmp_path / "vectors.npy", mmap_mode="r", allow_pickle=False))
    np.testing.assert_array_equal(index.search(vectors, 1)[1][:, 0], np.arange(200))


@pytest.mark.parametrize(
    ("items", "sampled", "expected"), [(1, 1, 1), (100, 100, 12), (10_000, 10_000, 400), (1_000_000, 20_000, 2500)]
)
def test_default_number_of_clusters(items: int, sampled: int, expected: int) -> None:
    assert default_num_clusters(items, sampled) == expected


def test_bad_input(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(7), 50)
    index = build_ivf(vectors)
    with pytest.raises(ValueError, match="expected \\[Q, 16\\]"):
        index.search(vectors[:, :8], 5, 1)
    with pytest.raises(ValueError, match="k is 0"):
        index.search(vectors, 0, 1)
    with pytest.raises(ValueError, match="num_probes is 0"):
        index.search(vectors, 5, 0)
    with pytest.raises(ValueError, match=r"index.num_clusters is 60"):
        build_ivf(vectors, num_clusters=60)
    with pytest.raises(ValueError, match="catalogue is empty"):
        build_ivf(vectors[:0])
    with pytest.raises(ValueError, match="no index file"):
        read_faiss(tmp_path / "none.faiss", 0)
    (tmp_path / "broken.faiss").write_bytes(b"not an index at all")
    with pytest.raises(ValueError, match=r"broken.faiss: not a readable faiss index"):
        read_faiss(tmp_path / "broken.faiss", 0)


@pytest.mark.parametrize(("width", "k"), [(300, 1), (300, 127), (300, 128), (300, 300), (5, 5)])
def test_the_largest_scores_of_each_row(width: int, k: int) -> None:
    scores = np.random.default_rng(0).normal(size=(6, width)).astype(np.float32)
    scores[3, : width // 2] = -np.inf
    found, columns = largest(scores, k)
    np.testing.assert_array_equal(found, -np.sort(-scores, axis=1)[:, :k])
    real = np.isfinite(found)
    np.testing.assert_array_equal(np.take_along_axis(scores, columns, axis=1)[real], found[real])
