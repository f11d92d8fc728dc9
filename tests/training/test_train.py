"""The trainer in one process: what it learns, writes, refuses and survives."""

from __future__ import annotations

import gzip
import json
import logging
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_dataset import pair_loader
from tiny_run import losses_of, state_of, tiny_config, write_inputs

from mtmh.artifacts import open_artifact, sealed
from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.distributed.finite import NonFiniteStateError
from mtmh.training.model_builder import build_model, load_model
from mtmh.training.newest import latest_checkpoint
from mtmh.training.progress import STEP_METRICS, NonFiniteLossError
from mtmh.training.trainer import train


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_inputs(root)
    return root


@pytest.fixture
def root(inputs: Path, tmp_path: Path) -> Path:
    for name in ("dataset", "content"):
        (tmp_path / name).symlink_to(inputs / name)
    return tmp_path


def trained(root: Path, steps: int = 6, **sections: Any) -> Config:
    training = {"max_steps": steps, "checkpoint_every": 2} | sections.pop("training", {})
    config = tiny_config(root, training=training, **sections)
    train(config)
    return config


def names(root: Path) -> list[str]:
    return sorted(
        path.name for path in (root / "tiny" / "checkpoints").iterdir() if path.name.startswith((".", "step"))
    )


def test_training_lowers_the_loss_of_both_heads(root: Path) -> None:
    config = trained(root, 60, training={"checkpoint_every": 60, "epochs": 20, "learning_rate": 0.2})
    losses = losses_of(config)
    for head in ("engagement", "relevance"):
        before, after = (np.mean([losses[s][head]["total"] for s in steps]) for steps in (range(1, 11), range(51, 61)))
        assert after < 0.9 * before
    assert losses[1]["engagement"]["relevance"] == 0.0 < losses[1]["relevance"]["relevance"]


def test_checkpoints_hold_the_run_and_only_the_last_are_kept(root: Path) -> None:
    config = trained(root, 7)
    assert names(root) == ["step-00000006", "step-00000007"]
    artifact = open_artifact(latest_checkpoint(config.model_dir("checkpoints")), "checkpoint")
    artifact.verify()
    assert artifact.summary["step"] == 7
    assert artifact.summary["features"] == open_dataset(config.dataset_dir).summary.features.model_dump()
    assert set(artifact.manifest.inputs) == {"dataset", "content"}
    assert Config.model_validate(artifact.manifest.config) == config


@pytest.mark.parametrize(
    ("plan", "loss"),
    [
        (None, {}),
        ("data_parallel", {}),
        ("row_wise", {}),
        (None, {"log_q": "streaming"}),
        (None, {"weighting": "gradnorm", "gradnorm": {"every": 2}}),
    ],
)
def test_a_resumed_run_equals_one_without_a_break(root: Path, plan: str | None, loss: dict[str, Any]) -> None:
    whole, broken = root / "whole", root / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        for name in ("dataset", "content"):
            (folder / name).symlink_to(root / name)
    sharding = {"default": plan}
    first = trained(whole, 9, sharding=sharding, loss=loss)
    trained(broken, 3, sharding=sharding, loss=loss)
    (broken / "tiny" / "checkpoints" / STEP_METRICS).open("a").write('{"step": 99, "loss": 1}\n{"half a li')
    other = trained(broken, 9, sharding=sharding, loss=loss)
    expected, state = (state_of(latest_checkpoint(c.model_dir("checkpoints"))) for c in (first, other))
    assert state.keys() == expected.keys()
    assert ("frequencies.gap" in state) == ("log_q" in loss)
    assert ("loss.grad_norm.first" in state) == ("weighting" in loss)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert losses_of(other) == losses_of(first)


def test_a_finished_run_is_left_as_it_is(root: Path) -> None:
    config = trained(root, 4)
    before = open_artifact(latest_checkpoint(config.model_dir("checkpoints")), "checkpoint")
    assert train(config) == before.path
    assert open_artifact(before.path, "checkpoint").manifest == before.manifest


def test_without_resume_existing_checkpoints_are_an_error(root: Path) -> None:
    config = trained(root, 2)
    with pytest.raises(ValueError, match=r"holds checkpoints up to step-00000002.*another name"):
        train(config, resume=False)
    assert names(root) == ["step-00000002"]


def test_a_run_with_other_settings_is_not_continued(root: Path) -> None:
    trained(root, 2)
    with pytest.raises(ValueError, match=r"loss.temperature was 0.07, is 0.5; model.head_dim was 8, is 12"):
        trained(root, 4, model={"head_dim": 12}, loss={"temperature": 0.5})
    with pytest.raises(ValueError, match=r"training.learning_rate was 0.05, is 0.01"):
        trained(root, 4, training={"learning_rate": 0.01})


def test_how_long_to_train_and_how_to_compute_may_change(root: Path) -> None:
    trained(root, 2)
    trained(root, 4, loss={"chunk_rows": 7}, training={"epochs": 3, "log_every": 3}, sharding={"default": "table_wise"})
    assert names(root)[-1] == "step-00000004"


def test_a_run_from_before_a_setting_existed_is_continued(root: Path) -> None:
    config = trained(root, 2)
    manifest = latest_checkpoint(config.model_dir("checkpoints")) / "manifest.json"
    tree = json.loads(manifest.read_text())
    del tree["config"]["loss"]["semantic"]
    manifest.write_text(json.dumps(sealed(tree)))
    assert trained(root, 4) is not None
    assert sorted(losses_of(config)) == [1, 2, 3, 4]


def test_a_run_on_other_data_is_not_continued(root: Path) -> None:
    config = trained(root, 2)
    shutil.copytree(root / "dataset", root / "changed")
    manifest = json.loads((root / "changed" / "manifest.json").read_text())
    manifest["decisive"]["seed"] = "another"
    (root / "changed" / "manifest.json").write_text(json.dumps(sealed(manifest)))
    (root / "dataset").unlink()
    (root / "changed").rename(root / "dataset")
    without_teacher = config.model_copy(
        update={"model": config.model.model_copy(update={"heads": config.model.heads[:1]})}
    )
    with pytest.raises(ValueError, match="it used a content artifact, which is not given now; the dataset artifact is"):
        train(without_teacher)


@pytest.mark.parametrize("damage", ["truncated", "altered", "no manifest"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_taken(
    root: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    trained(root, 6)
    expected = state_of(root / "tiny" / "checkpoints" / "step-00000006")
    newest = root / "tiny" / "checkpoints" / "step-00000006"
    data = next((newest / "state").glob("*.distcp"))
    if damage == "truncated":
        data.write_bytes(data.read_bytes()[:-100])
    elif damage == "altered":
        content = bytearray(data.read_bytes())
        content[-100] ^= 1
        data.write_bytes(content)
    else:
        (newest / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        trained(root, 6)
    assert "DAMAGED CHECKPOINT" in caplog.text
    assert "step-00000006.damaged" in caplog.text
    assert names(root) == ["step-00000004", "step-00000006", "step-00000006.damaged"]
    for name, value in state_of(newest).items():
        assert torch.equal(value, expected[name]), name


def test_if_all_are_damaged_training_stops(root: Path) -> None:
    trained(root, 4)
    for path in (root / "tiny" / "checkpoints").glob("step-*/manifest.json"):
        path.write_text("{")
    with pytest.raises(ValueError, match="all checkpoints are damaged"):
        trained(root, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2, "shards": []}, "format version 2, this mtmh reads 1"),
        ({"shards": []}, "not a manifest that this mtmh knows: shards"),
        ({"kind": "preranker"}, "expected a checkpoint artifact, found a preranker artifact"),
    ],
)
def test_a_checkpoint_that_another_mtmh_wrote_stops_training_and_stays(
    root: Path, changes: dict[str, Any], message: str
) -> None:
    config = trained(root, 4)
    manifest = root / "tiny" / "checkpoints" / "step-00000004" / "manifest.json"
    manifest.write_text(json.dumps(sealed(json.loads(manifest.read_text()) | changes)))
    with pytest.raises(ValueError, match=message):
        trained(root, 6)
    with pytest.raises(ValueError, match=message):  # nor is the model of step 2 taken for the newest
        latest_checkpoint(config.model_dir("checkpoints"))
    assert names(root) == ["step-00000002", "step-00000004"]


def test_load_model_gives_the_trained_model_without_the_dataset(root: Path) -> None:
    config = trained(root, 3)
    batch = next(pair_loader(open_dataset(config.dataset_dir), config).iterate())
    moved = root / "elsewhere"
    shutil.copytree(latest_checkpoint(config.model_dir("checkpoints")), moved)
    model = load_model(moved)
    assert not model.training
    written = state_of(moved)
    for name, value in model.state_dict().items():
        assert torch.equal(value, written[f"model.{name}"])
    fresh = build_model(config.model, open_dataset(config.dataset_dir).summary.features, torch.device("cpu"))
    for head, rows in model(batch.sparse, batch.dense).items():
        assert rows.shape == (len(batch.item_index), config.model.head_dim)
        assert not torch.allclose(rows, fresh(batch.sparse, batch.dense)[head])


def test_load_model_refuses_a_state_of_another_model(root: Path) -> None:
    config = trained(root, 2)
    checkpoint = latest_checkpoint(config.model_dir("checkpoints"))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for change, message in (
        ({"heads": [{"name": "engagement"}]}, r"in the files only: model.head_mlps.relevance"),
        (
            {"heads": [*config.model.model_dump()["heads"], {"name": "third"}]},
            r"not in the files: model.head_mlps.third",
        ),
        ({"head_dim": 12}, r"expected a tensor of shape \(12,.*found \(8,"),
    ):
        changed = manifest | {"config": manifest["config"] | {"model": manifest["config"]["model"] | change}}
        (checkpoint / "manifest.json").write_text(json.dumps(sealed(changed)))
        with pytest.raises(ValueError, match=message):
            load_model(checkpoint)
    with pytest.raises(ValueError, match="no checkpoint artifact here"):
        load_model(root)
    with pytest.raises(ValueError, match="no complete checkpoint here"):
        latest_checkpoint(root / "nowhere")


def test_a_loss_that_is_not_finite_stops_the_run_before_the_next_checkpoint(root: Path) -> None:
    model = {"normalize": False}
    training = {"dense_learning_rate": 1e30, "warmup_steps": 0, "log_every": 4}
    with pytest.raises(
        NonFiniteLossError, match=r"step 2: the engagement loss of head 'engagement' is (nan|inf).*: \d+,"
    ):
        trained(root, 6, model=model, training={**training, "checkpoint_every": 1})
    assert names(root) == ["step-00000001"]


@pytest.mark.parametrize("behind", [False, True])
def test_weights_that_overflow_in_the_last_update_reach_no_checkpoint(root: Path, behind: bool) -> None:
    """The loss of a step is from before its update: it is still a number when halves have become infinite."""
    training = {"learning_rate": 3e4, "checkpoint_every": 1, "keep_checkpoints": 1, "async_checkpoint": behind}
    with pytest.raises(NonFiniteStateError, match=r"^step 5: .*infinite or not a number in model.*embedding_bags"):
        trained(root, 6, model={"embedding_dtype": "fp16"}, training=training)
    assert names(root) == ["step-00000004"]
    state = state_of(root / "tiny" / "checkpoints" / "step-00000004")
    assert all(bool(value.isfinite().all()) for value in state.values())


def test_metrics_tell_what_a_window_was_like(root: Path) -> None:
    config = trained(root, 5, training={"log_every": 2, "checkpoint_every": 100})
    folder = config.model_dir("checkpoints")
    lines = [json.loads(line) for line in (folder / STEP_METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5]
    for line in lines:
        loss = line["loss"]["relevance"]
        assert loss["total"] == pytest.approx(loss["engagement"] + 0.5 * loss["relevance"])
        assert line["pairs_per_s"] > 0
        assert 0.0 <= line["data_wait_share"] <= 1.0
        assert line["grad_norm"].keys() == {"towers", "towers/dense_nn", "towers/engagement", "towers/relevance"}
        assert all(norm > 0 for norm in line["grad_norm"].values())
        parts = [norm for name, norm in line["grad_norm"].items() if name.startswith("towers/")]
        assert line["grad_norm"]["towers"] == pytest.approx(np.linalg.norm(parts))
        assert line["peak_rss_gb"] > 0.1
    assert list((folder / "tensorboard").glob("events.*"))


def test_a_table_of_no_name_and_a_cut_row_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"sharding.tables names no table: color, size; the tables are item_id, brand"):
        trained(root, 2, sharding={"tables": {"size": "row_wise", "color": "row_wise", "brand": "row_wise"}})
    with pytest.raises(ValueError, match=r"column_wise cuts rows, which rowwise_adagrad.*training.optimizer=adagrad"):
        trained(root, 2, sharding={"tables": {"brand": "column_wise"}})
    with pytest.raises(ValueError, match="no id feature colour"):
        trained(root, 2, model={"feature_dims": {"colour": 8}})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"embedding_dtype": "bf16"}}, r"model.embedding_dtype: .*bf16.*on the CPU.*fp32 or fp16"),
        ({"sharding": {"uvm_caching": {"brand": 0.1}}}, r"sharding.uvm_caching \(brand\).*training.device=cpu"),
        ({"sharding": {"uvm_caching": {"colour": 0.1}}}, r"sharding.uvm_caching names no table: colour"),
        ({"sharding": {"communication": {"backward": "fp8"}}}, r"sharding.communication: .* fp8 on CUDA only.* int8"),
        (
            {"sharding": {"default": "table_row_wise", "communication": {"forward": "int8"}}},
            r"table_row_wise trained wrongly.*int8 is refused",
        ),
    ],
)
def test_what_the_cpu_cannot_do_is_refused_at_the_start(root: Path, sections: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(root, 2, **sections)


def test_halves_are_stored_and_loaded(root: Path) -> None:
    config = trained(root, 3, model={"embedding_dtype": "fp16"})
    model = load_model(latest_checkpoint(config.model_dir("checkpoints")))
    assert model.state_dict()["sparse_nn.ebc.embedding_bags.item_id.weight"].dtype == torch.float16


def test_a_profile_is_a_trace_of_named_ranges(root: Path) -> None:
    config = tiny_config(root, training={"max_steps": 8})
    train(config, profile=2)
    with gzip.open(config.model_dir("checkpoints") / "trace" / "rank-0.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    for part in ("forward", "backward", "optimizer"):
        assert len([name for name in names if name.startswith(f"## {part} ")]) == 2, part
    assert "data wait" in names
    assert {"name", "ph", "ts", "dur", "pid", "tid"} <= next(event for event in events if event.get("ph") == "X").keys()
    assert [path.name for path in (config.model_dir("checkpoints") / "trace").iterdir()] == ["rank-0.json.gz"]


def test_saving_in_the_background_gives_the_same_run(root: Path) -> None:
    expected = state_of(latest_checkpoint(trained(root, 9).model_dir("checkpoints")))
    shutil.rmtree(root / "tiny")
    trained(root, 9, training={"async_checkpoint": True})
    assert names(root) == ["step-00000008", "step-00000009"]
    state = state_of(root / "tiny" / "checkpoints" / "step-00000009")
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    # The one before the last was written in the background; the run goes on from it to the same end.
    shutil.rmtree(root / "tiny" / "checkpoints" / "step-00000009")
    open_artifact(root / "tiny" / "checkpoints" / "step-00000008", "checkpoint").verify()
    trained(root, 9, training={"async_checkpoint": True})
    state = state_of(root / "tiny" / "checkpoints" / "step-00000009")
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_a_failure_of_writing_in_the_background_is_raised(root: Path) -> None:
    """Files must not grow past a limit of the operating system, as on a full disk."""
    training = {"max_steps": 40, "checkpoint_every": 5, "log_every": 5, "async_checkpoint": True}
    config = tiny_config(root, model={"embedding_dim": 64}, training=training)  # a table is larger than the log
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"step-00000005: the checkpoint could not be written in the background"):
            train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [name for name in names(root) if name.startswith("step")]
    train(config)
    assert names(root) == ["step-00000035", "step-00000040"]


def test_a_checkpoint_is_repaired_from_the_dataset_and_one_of_another_step_set_aside(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(root, 4)
    newest = root / "tiny" / "checkpoints" / "step-00000004"
    vocabulary = next(path for path in sorted(newest.glob("vocabulary/**/*")) if path.is_file())
    whole = vocabulary.read_bytes()
    vocabulary.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert (root / "dataset" / vocabulary.relative_to(newest)).read_bytes() == whole, "no file is shared"
    with caplog.at_level(logging.WARNING):
        trained(root, 6)
    assert f"DAMAGED FILE {vocabulary}" in caplog.text
    assert vocabulary.read_bytes() == whole
    assert names(root) == ["step-00000004", "step-00000006"]
    (newest.with_name("step-00000006")).rename(newest.with_name("step-00000008"))
    with caplog.at_level(logging.WARNING):
        trained(root, 6)
    assert "its manifest is of step 6" in caplog.text
    assert names(root) == ["step-00000004", "step-00000006", "step-00000008.damaged"]
