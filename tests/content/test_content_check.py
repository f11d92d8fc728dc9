"""The check of the teacher: its figures against plain loops, its gates, and its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_catalogue import NOTHING, NUM_ITEMS, make_config, topic_of, write_dataset
from typer.testing import CliRunner

from mtmh.artifacts import write_artifact
from mtmh.cli import app
from mtmh.config import Config
from mtmh.content.check import check_content, check_table
from mtmh.content.check_metrics import agreement


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), num_items=st.integers(6, 25), rounding=st.integers(1, 6))
def test_figures_against_plain_loops(seed: Any, num_items: Any, rounding: Any) -> None:
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((num_items, 3))
    embeddings = np.round(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), rounding).astype(np.float32)
    topics = rng.integers(0, 2, num_items)
    topics[:3] = [0, 0, 1]
    found = agreement("x", embeddings, {"topic_l1": topics}, [1, 4], num_bins=5)

    cosine = embeddings @ embeddings.T
    pairs = [(i, j) for i in range(num_items) for j in range(i + 1, num_items)]
    same = [cosine[i, j] for i, j in pairs if topics[i] == topics[j]]
    other = [cosine[i, j] for i, j in pairs if topics[i] != topics[j]]
    auc = np.mean([[(a > b) + 0.5 * (a == b) for b in other] for a in same])
    assert found.auc["topic_l1"] == pytest.approx(auc, abs=1e-9)
    for k in (1, 4):
        shares = []
        for i in range(num_items):
            others = sorted((j for j in range(num_items) if j != i), key=lambda j, i=i: -cosine[i, j])
            shares.append(np.mean([topics[j] == topics[i] for j in others[:k]]))
        assert found.precision["topic_l1"][k] == pytest.approx(np.mean(shares))
    calibration = found.calibration
    assert sum(calibration.pairs) == len(pairs)
    assert calibration.edges == sorted(calibration.edges)
    hits = sum(
        count * (share or 0.0) for count, share in zip(calibration.pairs, calibration.same["topic_l1"], strict=True)
    )
    assert hits == pytest.approx(len(same))


def test_degenerate_samples_are_errors() -> None:
    rows = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match="all pairs of the sample have the same topic_l1"):
        agreement("x", rows, {"topic_l1": np.zeros(4, np.int64)}, [1], 5)
    with pytest.raises(ValueError, match="all pairs of the sample have other topic_l1"):
        agreement("x", rows, {"topic_l1": np.arange(4)}, [1], 5)
    with pytest.raises(ValueError, match="too few for 4 neighbours"):
        agreement("x", rows, {"topic_l1": np.arange(4)}, [4], 5)


def with_gates(config: Config, **gates: object) -> Config:
    check = config.content.check.model_copy(update={"num_items": 60, "k": [3]} | gates)
    return config.model_copy(update={"content": config.content.model_copy(update={"check": check})})


def test_trained_encoder_by_modality(trained: Any, tmp_path: Path) -> None:
    config = with_gates(trained, min_auc_l1=0.6, min_precision_l2=0.5)
    artifact = check_content(config, tmp_path / "check")
    assert artifact.summary["failures"] == []
    facts = json.loads((tmp_path / "check" / "metrics.json").read_text())
    rows = {row["name"]: row for row in facts["rows"]}
    assert list(rows) == ["text and image", "text alone", "image alone", "untrained, text and image"]
    assert rows["text and image"]["auc"]["topic_l2"] > rows["untrained, text and image"]["auc"]["topic_l2"]
    assert rows["text and image"]["auc"]["topic_l2"] > 0.9
    # Six items lack something; 60 of the 64 are drawn.
    assert 2 <= facts["num_items_without_all_content"] <= 6
    assert facts["num_items"] + facts["num_items_without_all_content"] == 60
    page = (tmp_path / "check" / "report.html").read_text()
    assert "<svg" in page
    assert not any(reference in page for reference in ("<script", "<link", "<img", 'src="'))
    assert check_table(artifact).row_count == 4


def teacher_of(root: Path, embeddings: np.ndarray) -> Config:
    """A recipe whose teacher is a column, as if embedded already."""
    items = np.arange(NUM_ITEMS)
    columns = {
        "item_id": items,
        "topic_l1": [f"coarse {topic_of(item) // 2}" for item in items],
        "topic_l2": [f"fine {topic_of(item)}" if item != 11 else None for item in items],
    }
    dataset = write_dataset(root / "dataset", columns)
    with write_artifact(root / "content", "content", config={}, inputs={"dataset": dataset.artifact}) as writer:
        np.save(writer.folder / "embeddings.npy", embeddings.astype(np.float32))
    config = make_config(root)
    return config.model_copy(update={"content": type(config.content)()})


def test_any_teacher_by_its_content_artifact(tmp_path: Path) -> None:
    embeddings = np.eye(4)[topic_of(np.arange(NUM_ITEMS))]
    embeddings[NOTHING] = 0.0
    artifact = check_content(with_gates(teacher_of(tmp_path, embeddings), num_items=1000), tmp_path / "check")
    row = json.loads((tmp_path / "check" / "metrics.json").read_text())["rows"][0]
    assert (row["auc"]["topic_l2"], row["precision"]["topic_l2"]["3"]) == (1.0, 1.0)
    assert artifact.summary["num_items"] == NUM_ITEMS - 2  # one without a fine topic, one without content
    assert set(artifact.manifest.inputs) == {"dataset", "content"}


def test_missed_gates_are_named_and_end_in_exit_code_1(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((NUM_ITEMS, 4))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    config = with_gates(teacher_of(tmp_path, embeddings), min_auc_l2=0.8, min_precision_l1=0.95, min_auc_l1=0.01)
    artifact = check_content(config, tmp_path / "check")
    first, second = artifact.summary["failures"]
    assert first.startswith("ROC AUC of teacher at topic_l2 is 0.")
    assert first.endswith("below content.check.min_auc_l2 = 0.8")
    assert second.startswith("precision@3 of teacher at topic_l1 is 0.")

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.model_dump_json())
    result = CliRunner().invoke(app, ["content", "check", str(recipe), "--out", str(tmp_path / "again")])
    assert result.exit_code == 1
    assert "min_auc_l2 = 0.8" in result.output
    assert (tmp_path / "again" / "report.html").is_file()


def test_no_topics_is_an_error(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", {"item_id": [1, 2], "topic_l1": [None, None], "topic_l2": [None, None]})
    config = make_config(tmp_path)
    with pytest.raises(ValueError, match="no item has a topic"):
        check_content(config, tmp_path / "check")
