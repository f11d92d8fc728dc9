"""Training of the content encoder: the loss against its formula, ranks, kills, and how much of a backbone changes."""

from __future__ import annotations

import importlib.util
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forked_ranks import Launcher
from tiny_catalogue import NUM_ITEMS, make_config, write_catalogue
from torch import Tensor

from mtmh.artifacts import FORMAT_VERSION
from mtmh.config import Config
from mtmh.config.base import leaves
from mtmh.content.concepts import Concepts, PairOrder, open_concepts
from mtmh.content.identity import facts_of_run, identity_of_files
from mtmh.content.teacher import ContentFiles, Teacher, build_teacher, catalogue_words, open_teacher
from mtmh.content.train import ContrastTask, TrainBatches, train_content
from mtmh.content.tuning import (
    encoder_optimizer,
    encoder_state,
    merge_adapters,
    prepare_tuning,
    set_learning_rate,
    trained_parameters,
)
from mtmh.data.dataset import open_dataset
from mtmh.distributed.finite import NonFiniteStateError
from mtmh.distributed.ranks import Ranks, join_ranks
from mtmh.training.checkpoint import Checkpoints, RunRecord

PATIENCE = 120.0


def weights(out: Path) -> dict[str, Tensor]:
    return dict(open_teacher(out).model.state_dict())


def untrained(config: Config) -> Teacher:
    dataset = open_dataset(config.dataset_dir)
    encoder = config.content.encoder
    concepts = open_concepts(dataset, encoder.concepts, {})
    return build_teacher(encoder, config.seed, catalogue_words(dataset, concepts.texts))


def batches_of(config: Config, order: PairOrder, concepts: Concepts, teacher: Teacher, ranks: Ranks) -> TrainBatches:
    encoder, max_tokens = config.content.encoder, config.content.max_tokens
    assert encoder is not None
    reader = teacher.reader(open_dataset(config.dataset_dir), encoder.images, max_tokens)
    return TrainBatches(order, concepts, teacher, reader, encoder.training, max_tokens, config.seed, ranks)


def test_training_learns_and_the_artifact_explains_itself(trained: Any) -> None:
    artifact = train_content(trained, trained.encoder_dir)  # finished: comes back as it is
    losses = [loss for _, loss in artifact.summary["losses"]]
    assert losses[-1] < 0.7 * losses[0]
    assert artifact.summary["pairs_of_source"] == dict.fromkeys(("hashtag", "query", "generated"), NUM_ITEMS)
    assert artifact.summary["dim"] == 8
    assert set(artifact.manifest.files) >= {"model.safetensors", "text/config.json", "image/preprocessor_config.json"}
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in artifact.manifest.files)
    assert not trained.encoder_dir.with_name("encoder.steps").exists()


def test_loss_is_the_mean_of_both_directions_without_false_negatives(trained: Any, catalogue: Any) -> None:
    config = make_config(catalogue, encoder={"training": {"modality_dropout": 0.0, "source_weights": {"query": 0.3}}})
    dataset, encoder = open_dataset(config.dataset_dir), config.content.encoder
    concepts = open_concepts(dataset, encoder.concepts, encoder.training.source_weights)
    teacher = open_teacher(trained.encoder_dir)
    order = PairOrder(concepts, 24, seed=5)
    with join_ranks("cpu") as ranks:
        batch = batches_of(config, order, concepts, teacher, ranks).read(1)
        loss, reported = ContrastTask(teacher.model, 0.2, None)(batch)
    content, concept = (x.double() for x in teacher.model(batch.inputs, batch.concept_ids, batch.concept_mask))
    draw = order.draw(1)
    of_item = [set(concepts.values[concepts.offsets[item] : concepts.offsets[item + 1]].tolist()) for item in draw.item]
    similarity = content @ concept.T / 0.2
    total = torch.zeros((), dtype=torch.float64)
    for row in range(24):
        for logits, false in (
            (similarity[row], [number in of_item[row] for number in draw.concept.tolist()]),
            (similarity[:, row], [int(draw.concept[row]) in of_item[other] for other in range(24)]),
        ):
            kept = logits[~torch.tensor(false)]
            positive = similarity[row, row]
            total += float(draw.weight[row]) * (torch.logsumexp(torch.cat([positive[None], kept]), 0) - positive)
    expected = total / (2.0 * float(draw.weight.sum()))
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reported.double(), expected.detach().reshape(1, 1), atol=1e-5, rtol=1e-5)


def test_modality_dropout_takes_one_of_two_and_never_both(catalogue: Any) -> None:
    config = make_config(catalogue, encoder={"training": {"modality_dropout": 0.6}})
    dataset = open_dataset(config.dataset_dir)
    concepts = open_concepts(dataset, config.content.encoder.concepts, {})
    with join_ranks("cpu") as ranks:
        order = PairOrder(concepts, 24, seed=5)
        batches = batches_of(config, order, concepts, untrained(config), ranks)
        lost = {"text": 0, "image": 0, "both": 0}
        for step in range(order.steps_per_epoch):
            inputs = batches.read(step).inputs
            text, image = set(inputs.text_rows.tolist()), set(inputs.image_rows.tolist())
            for row, item in enumerate(order.draw(step).item.tolist()):
                if item not in range(3, 9):  # those lack something to begin with
                    lost["text"] += row not in text
                    lost["image"] += row not in image
                    lost["both"] += row not in text and row not in image
    assert lost["both"] == 0
    assert min(lost["text"], lost["image"]) > 24


def test_a_killed_run_resumes_and_ends_as_one_that_was_not(tmp_path: Path, catalogue: Any) -> None:
    training = {"max_steps": 40, "epochs": 40, "checkpoint_every": 2, "warmup_steps": 5}
    config = make_config(tmp_path, catalogue, encoder={"training": training})
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    launcher = Launcher(1, run=partial(train_content, out=killed))
    job = launcher.start(config)
    steps = killed.with_name("killed.steps")
    deadline = time.monotonic() + PATIENCE
    while not list(steps.glob("step-*")):
        assert job.is_running(), "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.ranks[0].kill()
    job.end()
    assert not killed.exists()
    train_content(config, killed)
    train_content(config, whole)
    ours, theirs = weights(killed), weights(whole)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert not steps.exists()


def test_two_ranks_compute_what_one_does(tmp_path: Path, catalogue: Any) -> None:
    # Item 4 and others have no image: some rank's share of a step may do without the image encoder.
    config = make_config(tmp_path, catalogue, encoder={"training": {"batch_size": 4, "max_steps": 6}})
    launcher = Launcher(2, run=partial(train_content, out=tmp_path / "two"))
    job = launcher.start(config)
    first = train_content(config, tmp_path / "one")
    job.finish()
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    for name, tensor in theirs.items():
        # A bias of the attention's keys changes nothing: its gradient is rounding, which Adam blows up.
        if not name.endswith(("key.bias", "k_proj.bias")):
            torch.testing.assert_close(
                ours[name], tensor, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: name + text
            )
    assert first.summary["losses"][-1][0] == 6


def changed(before: dict[str, Tensor], after: dict[str, Tensor], prefix: str) -> set[str]:
    return {name for name, tensor in after.items() if name.startswith(prefix) and not torch.equal(before[name], tensor)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_and_last_layers(tmp_path: Path, catalogue: Any, checkpointing: Any) -> None:
    encoder = {
        "text": {"model": "random:tiny-text", "tune": "last", "tune_layers": 1},
        "image": {"model": "random:tiny-image"},
        "training": {"max_steps": 2, "gradient_checkpointing": checkpointing, "modality_dropout": 0.0},
    }
    config = make_config(tmp_path, catalogue, encoder=encoder)
    before = dict(untrained(config).model.state_dict())
    train_content(config, tmp_path / "encoder")
    after = weights(tmp_path / "encoder")
    assert not changed(before, after, "image.")
    of_text = changed(before, after, "text.")
    assert of_text
    assert all(".layer.1." in name for name in of_text)
    assert changed(before, after, "fusion.")
    assert {"text_features.missing", "image_features.missing"} <= after.keys()


def test_gradient_checkpointing_changes_nothing(tmp_path: Path, catalogue: Any) -> None:
    for name, checkpointing in (("plain", False), ("checkpointed", True)):
        training = {"max_steps": 2, "gradient_checkpointing": checkpointing}
        train_content(make_config(tmp_path, catalogue, encoder={"training": training}), tmp_path / name)
    plain, checkpointed = weights(tmp_path / "plain"), weights(tmp_path / "checkpointed")
    for name, tensor in plain.items():
        torch.testing.assert_close(checkpointed[name], tensor, atol=1e-6, rtol=1e-5)


def test_too_many_layers_to_tune(tmp_path: Path, catalogue: Any) -> None:
    text = {"model": "random:tiny-text", "tune": "last", "tune_layers": 3}
    config = make_config(tmp_path, catalogue, encoder={"text": text})
    with pytest.raises(ValueError, match=r"content\.encoder\.text\.tune_layers: 3 asked for, BertModel has 2 layers"):
        prepare_tuning(untrained(config), config.content.encoder)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the extra lora (package peft) is not installed")
def test_adapters_train_alone_and_merge_into_a_plain_model(tmp_path: Path, catalogue: Any) -> None:
    towers = {kind: {"model": f"random:tiny-{kind}", "tune": "lora", "lora_rank": 2} for kind in ("text", "image")}
    config = make_config(tmp_path, catalogue, encoder={**towers, "training": {"max_steps": 3, "checkpoint_every": 2}})
    teacher = untrained(config)
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    prepare_tuning(teacher, config.content.encoder)
    backbone = {name for name in trained_parameters(teacher) if name.startswith(("text.", "image."))}
    assert backbone
    assert all(".lora_" in name for name in backbone)
    merge_adapters(teacher)
    assert teacher.model.state_dict().keys() == before.keys()

    train_content(config, tmp_path / "encoder")
    after = weights(tmp_path / "encoder")
    of_text = changed(before, after, "text.")
    assert of_text
    assert all(before[name].dim() == 2 for name in of_text)
    assert "text.model.embeddings.word_embeddings.weight" not in of_text


@pytest.mark.skipif(importlib.util.find_spec("peft") is not None, reason="the package peft is installed")
def test_adapters_without_the_package_say_what_to_install(tmp_path: Path, catalogue: Any) -> None:
    config = make_config(tmp_path, catalogue, encoder={"text": {"model": "random:tiny-text", "tune": "lora"}})
    with pytest.raises(ValueError, match=r"pip install 'mtmh\[lora\]'"):
        prepare_tuning(untrained(config), config.content.encoder)


def test_own_concept_encoder_and_text_alone(tmp_path: Path, catalogue: Any) -> None:
    encoder = {"image": None, "concept": {"model": "random:tiny-text"}, "training": {"max_steps": 2}}
    artifact = train_content(make_config(tmp_path, catalogue, encoder=encoder), tmp_path / "encoder")
    assert artifact.summary["pooling"] == {"text": "mean", "concept": "mean"}
    assert open_teacher(tmp_path / "encoder").model.concept is not None


def test_checkpoints_of_other_settings_are_refused(tmp_path: Path, catalogue: Any) -> None:
    config = make_config(tmp_path, catalogue)
    out, dataset = tmp_path / "encoder", open_dataset(config.dataset_dir)
    concepts = open_concepts(dataset, config.content.encoder.concepts, {})
    encoder = config.content.encoder
    files = identity_of_files(encoder, ContentFiles.find(encoder, config.media_dir), dataset)
    facts = facts_of_run(config.content, 4, dataset, concepts.pairs_of_source, 16, files)
    with join_ranks("cpu") as ranks:
        Checkpoints(tmp_path / "encoder.steps", RunRecord(facts, dict(leaves(facts)), {}), ranks).save(
            2, {"model.x": torch.ones(2)}
        )
    with pytest.raises(ValueError, match="the run was another one: seed was 4, is 3"):
        train_content(config, out)


def test_other_concepts_or_pictures_are_another_run_even_if_as_many(tmp_path: Path) -> None:
    write_catalogue(tmp_path)
    config = make_config(tmp_path, encoder={"training": {"max_steps": 1}})
    out, concepts, pictures = config.encoder_dir, tmp_path / "concepts.parquet", tmp_path / "pictures"
    first = train_content(config, out).summary
    pictures.rename(tmp_path / "moved")  # where files are may change
    moved = make_config(tmp_path, encoder={"training": {"max_steps": 1}, "images": str(tmp_path / "moved")})
    made_at = (out / "manifest.json").stat().st_mtime_ns
    assert train_content(moved, out).summary == first
    assert (out / "manifest.json").stat().st_mtime_ns == made_at
    table = pq.read_table(concepts)
    corrected = pa.array(["corrected", *table.column("concept").to_pylist()[1:]])
    pq.write_table(table.set_column(1, "concept", corrected), concepts)
    second = train_content(moved, out).summary
    assert second["pairs_of_source"] == first["pairs_of_source"]
    assert second["losses"] != first["losses"]
    (tmp_path / "moved" / "0.png").write_bytes((tmp_path / "moved" / "1.png").read_bytes())
    third = train_content(moved, out).summary
    assert third["decisive"]["images"] != second["decisive"]["images"]
    assert third["decisive"]["concepts"] == second["decisive"]["concepts"]


def test_weights_that_are_no_numbers_do_not_replace_a_checkpoint(tmp_path: Path, catalogue: Any) -> None:
    config = make_config(catalogue)
    with join_ranks("cpu") as ranks:
        teacher = untrained(config)
        parameters, optimizer = trained_parameters(teacher), encoder_optimizer(teacher, config.content.encoder.training)
        checkpoints = Checkpoints(tmp_path / "steps", RunRecord({}, {}, {}), ranks)
        checkpoints.save(2, encoder_state(parameters, optimizer))
        parameters["fusion.mlp.0.bias"].data[1] = torch.nan
        with pytest.raises(NonFiniteStateError, match=r"step 4: .* in model\.fusion\.mlp\.0\.bias\."):
            checkpoints.save(4, encoder_state(parameters, optimizer))
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["step-00000002"]


def test_learning_rate_warms_up_and_falls() -> None:
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.1, "full_rate": 0.1}])
    training = make_config(Path("x"), encoder={"training": {"warmup_steps": 4}}).content.encoder.training
    rates = []
    for step in range(20):
        set_learning_rate(optimizer, training, step, 20)
        rates.append(optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates[:5], [0.025, 0.05, 0.075, 0.1, 0.1])
    assert all(np.diff(rates[4:]) < 0)


def test_what_does_not_fit_is_said_before_anything_is_trained(tmp_path: Path, catalogue: Any) -> None:
    config = make_config(tmp_path, catalogue, encoder={"concepts": None})
    with pytest.raises(ValueError, match=r"content\.encoder\.concepts: not set"):
        train_content(config, tmp_path / "encoder")
    plain = config.model_copy(update={"content": type(config.content)()})
    with pytest.raises(ValueError, match="only kind = encoder"):
        train_content(plain, tmp_path / "encoder")


def test_an_encoder_of_another_format_is_trained_anew(tmp_path: Path) -> None:
    write_catalogue(tmp_path)
    config = make_config(tmp_path, encoder={"training": {"max_steps": 1}})
    config.encoder_dir.mkdir(parents=True)
    manifest = config.encoder_dir / "manifest.json"
    manifest.write_text(json.dumps({"format_version": FORMAT_VERSION + 1, "kind": "encoder"}))
    assert train_content(config, config.encoder_dir).manifest.format_version == FORMAT_VERSION
