"""The curve of the explorer page, where there is no evaluation that could be read."""

from pathlib import Path

import pytest
from synthetic_dataset import make_config

from mtmh.artifacts import write_artifact
from mtmh.retrieval.curve import CURVE_FILE, read_curve


def test_without_a_readable_evaluation_there_is_no_curve(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(tmp_path)
    assert read_curve(config.model_dir("evaluation"), config.model_dir("index")) is None
    assert caplog.text == "", "most services have none"
    with write_artifact(config.model_dir("evaluation"), "evaluation", config={}) as writer:
        (writer.folder / CURVE_FILE).write_text("{}")
    assert read_curve(config.model_dir("evaluation"), config.model_dir("index")) is None
    assert f"{CURVE_FILE}: recall_at: Field required" in caplog.text
    (config.model_dir("evaluation") / "manifest.json").write_text("{")
    assert read_curve(config.model_dir("evaluation"), config.model_dir("index")) is None
    assert "not a valid manifest" in caplog.text
