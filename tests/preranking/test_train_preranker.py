"""Training, artifact and scores of the preranker: against the formulas, after a break, and on two gloo ranks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mtmh.modules import task_probability
from test_examples import loader_of
from tiny_preranker import TASKS, tiny_config, write_embeddings, write_inputs
from tiny_run import losses_of, state_of

from mtmh.artifacts import open_artifact
from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.distributed.ranks import join_ranks
from mtmh.preranking import task as task_module
from mtmh.preranking.examples import ExampleBatch
from mtmh.preranking.export import write_preranker
from mtmh.preranking.held_back import embedded_by, model_without_end
from mtmh.preranking.inputs import open_inputs
from mtmh.preranking.model_builder import load_preranker
from mtmh.preranking.scorer import Scorer, read_summary
from mtmh.preranking.task import PrerankerLoss
from mtmh.preranking.trainer import second_run, train_preranker
from mtmh.tower.embed import embed_catalogue
from mtmh.training.newest import VALIDATION, latest_checkpoint
from mtmh.training.trainer import train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("preranker")
    write_inputs(root)
    for name in ("tiny", "one", "two", "whole", "broken"):
        write_embeddings(tiny_config(root, name))
    return root


@pytest.fixture
def _alone() -> Iterator[None]:
    with join_ranks("cpu"):
        yield


def naive_loss(
    queries: torch.Tensor, biases: torch.Tensor, vectors: torch.Tensor, batch: ExampleBatch, in_batch: bool
) -> torch.Tensor:
    """The loss example by example and draw by draw."""
    log_q = batch.log_q.double()
    total = torch.zeros((), dtype=torch.float64)
    for example in range(len(batch.positive)):
        others = [row for other, row in enumerate(batch.positive.tolist()) if other != example] if in_batch else []
        draws = torch.tensor([*others, *batch.uniform.tolist()])
        positive = vectors[batch.positive[example]]
        found = queries[example, 0] @ positive
        noise = vectors[draws] @ queries[example, 0] - log_q[draws] - math.log(len(draws))
        log_z = torch.cat([found[None], noise]).exp().sum().log()
        total = total + log_z - found + (log_z.detach() + biases[example, 0]) ** 2
        for label in range(batch.labels.shape[1]):
            chance = torch.sigmoid(queries[example, 1 + label] @ positive + biases[example, 1 + label])
            true = bool(batch.labels[example, label])
            total = total - (chance if true else 1.0 - chance).log()
    return total / len(batch.positive)


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("chunk", [4_194_304, 300])
def test_loss_and_gradients_equal_the_formulas(
    root: Path, in_batch: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_module, "CHUNK_LOGITS", chunk)
    batch = next(loader_of(tiny_config(root, in_batch_negatives=in_batch)).iterate())
    generator = torch.Generator().manual_seed(0)
    shapes = [(48, 3, 5), (48, 3), (len(batch.item_index), 5)]
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    loss, reported = PrerankerLoss(in_batch)(*leaves, batch)
    queries, biases, vectors = leaves
    expected = naive_loss(queries, biases, vectors, batch, in_batch)
    torch.testing.assert_close(loss, expected.reshape(1), rtol=1e-6, atol=1e-8)
    assert reported.shape == (1, 3)
    gradients = torch.autograd.grad(loss.sum(), leaves)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_training_learns_and_its_artifact_scores_as_the_model_does(root: Path) -> None:
    config = tiny_config(
        root, training={"epochs": 6, "batch_size": 240, "shuffle_pairs": 480, "checkpoint_every": 1000}
    )
    checkpoint = train_preranker(config)
    # The second run goes on from the first.
    losses = [*losses_of(config.preranker_checkpoints / VALIDATION).values()]
    losses += losses_of(config.preranker_checkpoints).values()
    for task in ("engagement", "like", "long_view"):
        first, last = (np.mean([loss[task]["total"] for loss in part]) for part in (losses[:8], losses[-8:]))
        assert last < first, task
    artifact = write_preranker(config, config.model_dir("preranker"))
    summary = read_summary(artifact)
    assert set(summary.quality) == {"click", "like", "long_view"}
    assert summary.quality["long_view"].engaged_auc is not None
    assert summary.quality["long_view"].engaged_auc > 0.55
    assert set(artifact.manifest.inputs) == {"dataset", "embeddings", "checkpoint"}

    model = load_preranker(checkpoint).double()
    dataset = open_dataset(config.dataset_dir)
    sparse, dense, frozen = open_inputs(dataset, config.model_dir("embeddings"))[0].gather(np.arange(dataset.num_items))
    rng = np.random.default_rng(0)
    histories = np.where(rng.random((5, 8)) < 0.8, rng.integers(0, dataset.num_items, (5, 8)), -1)
    histories[4] = -1  # nothing is known of this user but the trigger
    users, triggers = np.array([0, 1, 1, 4, 2]), rng.integers(0, dataset.num_items, 5)
    scorer = Scorer.load(config.model_dir("preranker"))
    for width in (7, 190):  # gathered vectors, and products with the whole catalogue
        items = rng.integers(-1, dataset.num_items, (5, width))
        scores = scorer.score(histories, users, triggers, items)
        with torch.no_grad():
            vectors = model(sparse, dense.double(), frozen.double())
            for row, (user, trigger) in enumerate(zip(users, triggers, strict=True)):
                history = histories[user][histories[user] >= 0]
                history = history if len(history) else np.array([trigger])
                queries, biases = model.user_tower(
                    vectors[:, :8], torch.from_numpy(history), torch.tensor([0, len(history)]), torch.tensor([trigger])
                )
                logits = queries[0] @ vectors.T + biases[0][:, None]
                chances = (
                    task_probability(logits, None) + 2.0 * task_probability(logits, 0) + task_probability(logits, 1)
                )
                expected = np.where(items[row] >= 0, chances.numpy()[items[row]], -np.inf)
                np.testing.assert_allclose(scores[row], expected, rtol=2e-4)
    assert scores.dtype == np.float32


def test_a_resumed_run_equals_one_without_a_break(root: Path) -> None:
    anew = {"final": "retrain"}
    whole, broken = (tiny_config(root, name, anew | {"max_steps": n}) for name, n in (("whole", 9), ("broken", 4)))
    train_preranker(whole)
    train_preranker(broken)
    # Neither the weights of the tasks nor how checkpoints are written decide what is computed.
    tasks = [{**task, "weight": 3.0} for task in TASKS]
    written = {"checkpoint_every": 3, "async_checkpoint": True}
    again = tiny_config(root, "broken", anew | written | {"max_steps": 9}, tasks=tasks)
    train_preranker(again)
    expected, state = (state_of(latest_checkpoint(c.preranker_checkpoints)) for c in (whole, again))
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert losses_of(again.preranker_checkpoints) == losses_of(whole.preranker_checkpoints)
    with pytest.raises(ValueError, match=r"preranker.window was 3, is 2"):
        train_preranker(tiny_config(root, "broken", anew | {"max_steps": 12}, window=2))


def rank_config(root: Path, world_size: int) -> Config:
    return tiny_config(root, "one" if world_size == 1 else "two", {"max_steps": 6})


def work(rank: int, world_size: int, root: Path) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=world_size)
    train_preranker(rank_config(root, world_size))
    dist.destroy_process_group()


def test_two_ranks_compute_what_one_does(root: Path) -> None:
    mp.start_processes(work, args=(2, root), start_method="forkserver", nprocs=2)
    train_preranker(rank_config(root, 1))
    alone, two = (rank_config(root, world_size).preranker_checkpoints for world_size in (1, 2))
    losses, expected = losses_of(two), losses_of(alone)
    assert losses.keys() == expected.keys() == {1, 2}, "a third of the first run's six"
    for step, tasks in expected.items():
        for task, parts in tasks.items():
            assert losses[step][task] == pytest.approx(parts, rel=1e-5)
    weights, wanted = (load_preranker(latest_checkpoint(folder)).state_dict() for folder in (two, alone))
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=2e-4, atol=2e-5)


def test_artifacts_of_other_data_are_refused(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root, "other", {"max_steps": 2}, head_embeddings=False)
    train_preranker(config)
    write_preranker(config, tmp_path / "preranker")
    scorer = Scorer.load(tmp_path / "preranker", 200)
    fresh = scorer.with_added(pa.table({"item_id": [10**6, 10**6 + 1]}), {})
    assert len(fresh.vectors) == 202, "the tower works without embeddings of heads, and without features"
    assert np.isfinite(fresh.vectors[200:]).all()
    with pytest.raises(ValueError, match="a preranker of 200 items, the index has 201"):
        Scorer.load(tmp_path / "preranker", 201)
    with pytest.raises(ValueError, match="no embeddings artifact"):
        train_preranker(tiny_config(root, "nothing"))
    manifest = json.loads((root / "dataset" / "manifest.json").read_text())
    assert "like" in manifest["summary"]["event_kinds"]


@pytest.mark.parametrize(
    ("tower", "preranker", "little", "much"),
    [
        ({}, "auto", "keep", "continue"),
        ({"final": "continue"}, "auto", "continue", "continue"),
        ({"final": "retrain"}, "auto", "retrain", "retrain"),
        ({"final": "keep"}, "auto", "keep", "continue"),
        ({"epochs": 2}, "auto", "retrain", "retrain"),
        ({"final": "retrain"}, "keep", "keep", "keep"),
    ],
)
def test_the_preranker_trains_on_where_its_embeddings_did(
    tmp_path: Path, tower: dict[str, object], preranker: str, little: str, much: str
) -> None:
    recipe = tiny_config(tmp_path, training={"final": preranker}).model_dump(mode="json")
    config = Config.model_validate(recipe | {"training": {"epochs": "auto"} | tower})
    assert second_run(config, True, has_two_models=True) == little
    assert second_run(config, False, has_two_models=True) == much
    alone = {"auto": ("keep", "continue")}.get(preranker, (preranker, preranker))
    assert tuple(second_run(config, held, has_two_models=False) for held in (True, False)) == alone


def test_evidence_is_weighed_by_a_model_and_embeddings_that_have_not_seen_the_end(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    config = tiny_config(tmp_path, training={"epochs": 1})
    training = {"epochs": "auto", "max_epochs": 2, "batch_size": 480, "num_shards": 6, "shuffle_pairs": 960}
    tower = {"embedding_dim": 8, "dense_hidden": [8], "dense_dim": 4, "head_hidden": [16], "head_dim": 8}
    recipe = config.model_dump(mode="json") | {"model": tower | {"heads": [{"name": "engagement"}]}}
    sizes = {"pairs": {"window": 2}, "validation": {"num_users": 60}}
    config = Config.model_validate(recipe | sizes | {"training": training})
    checkpoint = open_artifact(train(config), "checkpoint")
    embeddings = config.model_dir("embeddings")
    embed_catalogue(config, embeddings)
    train_preranker(config)
    best = checkpoint.summary["validation"]["best"]["step"]
    found = model_without_end(config.model_dir("checkpoints"), embeddings)
    assert found is not None
    assert found.path == config.model_dir("checkpoints") / VALIDATION / f"step-{best:08d}"
    assert embedded_by(config.held_back_embeddings, found)
    assert not embedded_by(embeddings, found)
    first = open_artifact(latest_checkpoint(config.preranker_checkpoints / VALIDATION), "checkpoint")
    last = open_artifact(latest_checkpoint(config.preranker_checkpoints), "checkpoint")
    digests = [
        open_artifact(folder, "embeddings").manifest.digest for folder in (config.held_back_embeddings, embeddings)
    ]
    assert [made.manifest.inputs["embeddings"] for made in (first, last)] == digests
    write_preranker(config, tmp_path / "out")
    # Without the run that has not seen the end there is nothing to weigh by.
    first.path.rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="validation: no complete checkpoint"):
        write_preranker(config, tmp_path / "again")


def test_beside_a_length_set_by_hand_a_model_of_the_same_length_has_not_seen_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_inputs(tmp_path)
    base = tiny_config(tmp_path).model_dump(mode="json")
    training = {"epochs": 2, "batch_size": 480, "num_shards": 6, "shuffle_pairs": 960}
    tower = {"embedding_dim": 8, "dense_hidden": [8], "dense_dim": 4, "head_hidden": [16], "head_dim": 8}
    base |= {"model": tower | {"heads": [{"name": "engagement"}]}}
    base |= {"pairs": {"window": 2}, "validation": {"num_users": 60}}

    def config_of(name: str, sorter: str, **more: int) -> Config:
        changes = {"name": name, "training": training | more, "retrieval": {"sorter": sorter}}
        return Config.model_validate(base | changes)

    def without_end(config: Config) -> Path | None:
        embed_catalogue(config, config.model_dir("embeddings"))
        found = model_without_end(config.model_dir("checkpoints"), config.model_dir("embeddings"))
        return found.path if found else None

    learned, alone = config_of("learned", "learned"), config_of("alone", "head-score")
    served = train(learned)
    first = latest_checkpoint(learned.model_dir("checkpoints") / VALIDATION)
    assert without_end(learned) == first
    assert all(torch.equal(mine, other) for mine, other in zip(
        state_of(served).values(), state_of(train(alone)).values(), strict=True
    )), "the model that serves is that of all of T1"  # fmt: skip
    steps = [int(folder.name.removeprefix("step-")) for folder in (served, first)]
    assert steps[1] < steps[0], "its pairs are those of the kept events"
    preranker = train_preranker(learned).name
    weighing = latest_checkpoint(learned.preranker_checkpoints / VALIDATION).name
    assert preranker > weighing, "embeddings of another training: the preranker begins anew"

    assert without_end(alone) is None
    asked_later = alone.model_copy(update={"retrieval": learned.retrieval})
    assert train(asked_later) == latest_checkpoint(alone.model_dir("checkpoints"))
    assert without_end(asked_later) is not None, "training again makes what is missing"
    newest = latest_checkpoint(asked_later.model_dir("checkpoints") / VALIDATION)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["summary"]["num_steps"] += 1
    (newest / "manifest.json").write_text(json.dumps(manifest))
    assert without_end(asked_later) is None, "a run that was killed on its way is no such model"

    short = config_of("short", "learned", max_steps=2)
    train(short)
    assert without_end(short) is None
    train_preranker(short)
    assert "there is no model that has not seen the end of T1" in caplog.text
