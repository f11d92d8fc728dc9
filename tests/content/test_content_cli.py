"""The verbs of the teacher, one after another, on a simulated catalogue."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from mtmh.cli import app

SETTINGS = [
    "data.options.num_users=60",
    "data.options.num_items=300",
    "data.options.num_events=2000",
    "data.options.num_topics_l1=3",
    "data.options.num_topics_l2=2",
    "data.options.num_days=5",
    "data.options.title_noise=0.3",
    "content.encoder.training.batch_size=64",
    "content.encoder.training.max_steps=40",
    "content.check.min_auc_l1=0.6",
    "content.check.min_auc_l2=0.6",
    "training.device=cpu",
]


def test_simulate_train_embed_check(tmp_path: Path) -> None:
    overrides = [word for setting in [f"paths.root={tmp_path}", *SETTINGS] for word in ("--set", setting)]
    for verb in ("prepare", "content simulate", "content train", "content embed", "content check"):
        result = CliRunner().invoke(app, [*verb.split(), "synthetic+teacher-tiny", *overrides])
        assert result.exit_code == 0, (verb, result.output, result.exception)
    assert {path.name for path in tmp_path.iterdir()} == {"dataset", "media", "encoder", "content", "content-check"}
    assert "text alone" in result.output
