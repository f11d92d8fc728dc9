"""The simulator: exact counts, determinism, births, words without topics, and the tension that it is made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from prepare_helpers import files_of, make_config

from mtmh.data.schema import HISTORIES, ITEMS, TEST
from mtmh.prepare.prepare import prepare
from mtmh.prepare.sources.synthetic import SECONDS_A_DAY, SyntheticOptions, simulate, topic_words

SMALL = {"num_users": 300, "num_items": 400, "num_events": 20_000, "num_days": 20}


def simulated(folder: Path, seed: int = 0, **options: Any) -> tuple[pa.Table, pa.Table]:
    folder.mkdir()
    simulate(SyntheticOptions(**{**SMALL, **options}), seed, folder)
    events = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("events-*.parquet")))
    return events, pq.read_table(folder / "items.parquet")


def test_counts_and_columns(tmp_path: Path) -> None:
    events, items = simulated(tmp_path / "a", num_events=20_003)
    assert len(events) == 20_003
    assert len(items) == 400
    assert pc.min_max(events["user_id"]).as_py()["min"] >= 1
    assert pc.max(events["user_id"]).as_py() <= 300
    assert pc.all(pc.is_in(events["item_id"], items["item_id"])).as_py()
    assert 0 <= pc.min(events["timestamp"]).as_py() < pc.max(events["timestamp"]).as_py() < 20 * SECONDS_A_DAY
    embeddings = items["content_embedding"].combine_chunks().flatten().to_numpy().reshape(400, 64)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-5)
    assert 0 < items["price"].null_count < 40


def test_same_seed_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtmh.prepare.sources.synthetic.CHUNK_EVENTS", 300)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulated(tmp_path / name, seed)
    first, same, other = (files_of(tmp_path / name) for name in "abc")
    assert first == same
    assert all(first[name] != other[name] for name in first)


def test_users_differ_and_items_are_skewed(tmp_path: Path) -> None:
    events, _ = simulated(tmp_path / "a", popularity_skew=1.0)
    per_user = np.bincount(events["user_id"].to_numpy())[1:]
    assert per_user.max() > 4 * np.median(per_user)
    per_item = np.sort(np.bincount(events["item_id"].to_numpy()))[::-1]
    assert per_item[:40].sum() > 0.35 * per_item.sum()


def test_fresh_items_appear_over_time(tmp_path: Path) -> None:
    events, _ = simulated(tmp_path / "a", fresh_share=0.5)
    day = events["timestamp"].to_numpy() // SECONDS_A_DAY
    item = events["item_id"].to_numpy()
    first_day = np.full(401, 99)
    np.minimum.at(first_day, item, day)
    fresh = first_day[item] >= 16
    assert fresh[day < 16].sum() == 0
    assert fresh[day >= 16].mean() > 0.05


def test_titles_never_name_their_topic(tmp_path: Path) -> None:
    _, items = simulated(tmp_path / "a", num_topics_l1=12, num_topics_l2=8, num_items=3000)
    for row in items.to_pylist():
        words = row["text"].split()
        assert len(set(words)) == len(words) == 4
        for topic in (row["topic_l1"], row["topic_l2"]):
            stem = topic.split()[0].lower().rstrip("s")
            assert not any(stem in word for word in words), row["text"]


def test_topics_beyond_the_word_file() -> None:
    topics = topic_words(25, 13)
    assert len(topics) == 25 * 13
    assert len({topic.l1 for topic in topics}) == 25
    assert len({(topic.l1, topic.l2) for topic in topics}) == len(topics)
    assert len({topic.l2 for topic in topics}) == len(topics)
    assert all(len(topic.words) == 10 for topic in topics)


def test_shares_must_fit() -> None:
    with pytest.raises(ValueError, match="exceed 1 together"):
        SyntheticOptions(topical_share=0.7, communal_share=0.7)


def test_recall_and_relevance_pull_apart(tmp_path: Path) -> None:
    """Co-engagement neighbours recall more, content neighbours match topics more, both together recall most."""
    options = {"num_users": 2500, "num_items": 3000, "num_events": 100_000}
    config = make_config(tmp_path, source="synthetic", options=options)
    path = prepare(config, tmp_path / "dataset").path
    items = pq.read_table(path / ITEMS)
    num_items = len(items)
    histories, test = pq.read_table(path / HISTORIES), pq.read_table(path / TEST)
    lists = histories["items"].combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    engaged = np.zeros((len(histories), num_items), np.float32)
    engaged[np.repeat(np.arange(len(histories)), lengths), lists.flatten().to_numpy()] = 1.0
    together = engaged.T @ engaged
    norm = np.sqrt(np.maximum(np.diag(together), 1.0))
    content = items["content_embedding"].combine_chunks().flatten().to_numpy().reshape(num_items, -1)

    def neighbours(score: NDArray[np.float32]) -> NDArray[np.int64]:
        np.fill_diagonal(score, -2.0)
        return np.argsort(-score, axis=1)[:, :10]

    by_engagement, by_content = neighbours(together / norm / norm[:, None]), neighbours(content @ content.T)
    both = np.concatenate([by_engagement[:, :5], by_content[:, :5]], axis=1)

    def recall(found: NDArray[np.int64]) -> float:
        hits, total = 0, 0
        for row in test.slice(0, 400).to_pylist():
            seen = engaged[row["user_index"]] > 0
            answers = np.zeros(num_items, bool)
            answers[found[seen].ravel()] = True
            truth = np.array([item for item in row["items"] if not seen[item]], np.int64)
            hits, total = hits + int(answers[truth].sum()), total + len(truth)
        return hits / total

    topic = np.unique(items["topic_l2"].to_pylist(), return_inverse=True)[1]

    def match(found: NDArray[np.int64]) -> float:
        return float((topic[found] == topic[:, None]).mean())

    assert recall(by_engagement) > 1.1 * recall(by_content)
    assert recall(both) > recall(by_engagement)
    assert 0.6 < match(by_content) < 0.99
    assert match(by_engagement) < 0.5 * match(by_content)
