"""A second period's run that starts from the first period's model: which rows carry over, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from prepare_helpers import Written, prepare_tables
from tiny_run import MODEL, read_whole, state_of, tiny_config
from torch import Tensor

from mtmh.artifacts import open_artifact, sealed
from mtmh.cli import app
from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.data.period import Period, why_it_may_leak
from mtmh.data.schema import vocabulary_file
from mtmh.data.validation import ValidationDataset
from mtmh.distributed.optimizers import build_optimizer
from mtmh.distributed.ranks import join_ranks
from mtmh.distributed.sharding import shard
from mtmh.distributed.state_files import write_state
from mtmh.training.checkpoint import STATE, training_state
from mtmh.training.continuation import CarriedRows, carry_over, carry_over_frequencies, open_previous
from mtmh.training.frequencies import FREQUENCIES, streaming_frequencies
from mtmh.training.model_builder import build_model
from mtmh.training.newest import latest_checkpoint
from mtmh.training.task import TrainTask, items_per_step
from mtmh.training.trainer import train

PLANS = {"rows": ("row_wise", "rowwise_adagrad"), "columns": ("column_wise", "adagrad")}
FEATURES = ("item_id", "brand")


def write_period(root: Path, items: range, seed: int) -> None:
    """Items have brands; those of a later period have other items, and so other brands and rows."""
    rng = np.random.default_rng(seed)
    events = [(f"u{user}", f"i{rng.choice(items)}", t) for user in range(40) for t in range(12)]
    table = {"item_id": [f"i{item}" for item in items], "brand": [f"b{item // 5}" for item in items]}
    prepare_tables(root, events, table, seed=seed, id_features=["brand"], split={"kind": "user"})


def config_of(root: Path, plan: str = "rows", name: str = "tiny", **training: Any) -> Config:
    sharding, optimizer = PLANS[plan]
    return tiny_config(
        root,
        name,
        model={"heads": [{"name": "engagement"}]},
        sharding={"default": sharding},
        training={"optimizer": optimizer, "max_steps": 4, "checkpoint_every": 2, "warmup_steps": 0} | training,
    )


def fresh_and_carried(rank: int, world_size: int, root: Path, plan: str) -> list[CarriedRows]:
    """Writes the second period's state before and after the carry-over."""
    for kind in ("fresh", "carried") if world_size == 1 else ():
        shutil.rmtree(root / f"{kind}-{plan}-1", ignore_errors=True)
    config = config_of(root / "two", plan)
    dataset = open_dataset(config.dataset_dir)
    previous = open_previous(checkpoint_of(root, plan), config.model, config.training, dataset.summary)
    if world_size > 1:
        store = dist.FileStore(str(root / f"store-{plan}"), world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    with join_ranks("cpu") as ranks:
        torch.manual_seed(config.seed)
        model = build_model(config.model, dataset.summary.features, ranks.device, tables=torch.device("meta"))
        sharded, _ = shard(
            TrainTask(model, config.loss),
            config.sharding,
            ranks,
            items_per_step=items_per_step(config.training, config.loss),
            training=config.training,
            seed=config.seed,
        )
        optimizer = build_optimizer(sharded, config.training)
        write_state(training_state(sharded, optimizer), root / f"fresh-{plan}-{world_size}")
        carried = carry_over(previous, dataset, sharded, optimizer, ranks)
        write_state(training_state(sharded, optimizer), root / f"carried-{plan}-{world_size}")
    if world_size > 1:
        dist.destroy_process_group()
    return carried


def streaming(root: Path, name: str, **training: Any) -> Config:
    """A run that estimates log-q from its batches."""
    config = config_of(root, name=name, **training)
    loss = config.loss.model_copy(update={"log_q": "streaming", "log_q_rate": 0.3})
    return config.model_copy(update={"loss": loss})


def carry_estimates(rank: int, world_size: int, root: Path, batch_size: int) -> None:
    """Writes the estimates that the second period begins with."""
    config = streaming(root / "two", "tiny", batch_size=batch_size)
    dataset = open_dataset(config.dataset_dir)
    if world_size > 1:
        store = dist.FileStore(str(root / f"store-estimates-{batch_size}"), world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    with join_ranks("cpu") as ranks:
        frequencies = streaming_frequencies(config.loss, config.training.batch_size, dataset.item_table, ranks)
        assert frequencies is not None
        previous = open_previous(estimates_of(root), config.model, config.training, dataset.summary)
        carry_over_frequencies(previous, dataset, frequencies)
        parts = {f"{FREQUENCIES}.{name}": value for name, value in frequencies.state().items()}
        write_state(parts, root / f"estimates-{batch_size}-{world_size}")
    if world_size > 1:
        dist.destroy_process_group()


def estimates_of(root: Path) -> Path:
    return latest_checkpoint(streaming(root / "one", "streaming").model_dir("checkpoints"))


def checkpoint_of(root: Path, plan: str = "rows") -> Path:
    return latest_checkpoint(config_of(root / "one", plan, plan).model_dir("checkpoints"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("periods")
    write_period(root / "one", range(60), seed=1)
    write_period(root / "two", range(20, 90), seed=2)
    for plan in PLANS:
        train(config_of(root / "one", plan, plan))
    train(streaming(root / "one", "streaming"))
    return root


def rows_of(folder: Path, feature: str) -> dict[Any, int]:
    table = pq.read_table(folder / vocabulary_file(feature))
    return dict(zip(table["value"].to_pylist(), table["row"].to_pylist(), strict=True))


def table_entries(state: dict[str, Tensor], feature: str) -> list[str]:
    return [name for name in state if f"embedding_bags.{feature}." in name and state[name].dim()]


@pytest.mark.parametrize("plan", PLANS)
def test_known_values_keep_their_rows_and_new_ones_start_afresh(root: Path, plan: str) -> None:
    carried = fresh_and_carried(0, 1, root, plan)
    before = state_of(checkpoint_of(root, plan))
    fresh, after = (read_whole(root / f"{kind}-{plan}-1") for kind in ("fresh", "carried"))
    assert before.keys() == fresh.keys() == after.keys()
    tables = 0
    for feature, counts in zip(FEATURES, carried, strict=True):
        old_rows = rows_of(checkpoint_of(root, plan), feature)
        new_rows = rows_of(root / "two" / "dataset", feature)
        both = old_rows.keys() & new_rows.keys()
        assert both
        assert new_rows.keys() - both
        assert [old_rows[value] for value in both] != [new_rows[value] for value in both]
        assert counts == CarriedRows(feature, len(new_rows) + 1, len(old_rows) + 1, len(both) + 1)
        for name in table_entries(before, feature):
            tables += 1
            assert torch.equal(after[name][0], before[name][0])  # unknown
            for value, row in new_rows.items():
                expected = before[name][old_rows[value]] if value in both else fresh[name][row]
                assert torch.equal(after[name][row], expected)
            if name.startswith("optimizer."):
                assert sum(float(after[name][new_rows[v]].sum()) for v in new_rows.keys() - both) == 0.0
                assert after[name].sum() > 0.0
    assert tables == 4
    rest = [name for name in before if "embedding_bags" not in name]
    assert len(rest) > 4
    assert all(torch.equal(after[name], before[name]) for name in rest)


@pytest.mark.parametrize("plan", PLANS)
def test_two_ranks_carry_over_the_same(root: Path, plan: str) -> None:
    fresh_and_carried(0, 1, root, plan)
    mp.start_processes(fresh_and_carried, (2, root, plan), start_method="forkserver", nprocs=2)
    alone, two = (read_whole(root / f"carried-{plan}-{ranks}") for ranks in (1, 2))
    assert alone.keys() == two.keys()
    assert all(torch.equal(alone[name], two[name]) for name in alone)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("batch_size", [48, 24])
def test_estimates_of_known_items_go_on(root: Path, batch_size: int, world_size: int) -> None:
    if world_size == 1:
        carry_estimates(0, 1, root, batch_size)
    else:
        mp.start_processes(carry_estimates, (2, root, batch_size), start_method="forkserver", nprocs=2)
    before = state_of(estimates_of(root))
    after = read_whole(root / f"estimates-{batch_size}-{world_size}")
    longer = 48 // batch_size  # gaps, in steps of fewer pairs
    old_rows = rows_of(estimates_of(root), "item_id")
    new_rows = rows_of(root / "two" / "dataset", "item_id")
    both = old_rows.keys() & new_rows.keys()
    assert [old_rows[value] for value in both] != [new_rows[value] for value in both]
    fresh = {"gap": len(new_rows) / batch_size, "last_step": 0.0, "num_hits": 1.0}
    gaps = set()
    for value, row in new_rows.items():
        found = {name: float(after[f"{FREQUENCIES}.{name}"][row]) for name in fresh}
        if value in both:
            old = {name: float(before[f"{FREQUENCIES}.{name}"][old_rows[value]]) for name in fresh}
            expected = {
                "gap": longer * old["gap"],
                "last_step": longer * (old["last_step"] - 4),
                "num_hits": old["num_hits"],
            }
            gaps.add(expected["gap"])
            assert found == expected
        else:
            assert found == pytest.approx(fresh)
    assert new_rows.keys() - both
    assert len(gaps) > 5


def test_a_continued_run_begins_with_the_estimates_and_resumes_with_its_own(root: Path) -> None:
    whole = state_of(train(streaming(root / "two", "whole-streaming"), continue_from=estimates_of(root)))
    train(streaming(root / "two", "parts-streaming", max_steps=2), continue_from=estimates_of(root))
    parts = state_of(train(streaming(root / "two", "parts-streaming"), continue_from=estimates_of(root)))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    # The run before counted: it has no estimates, so these are of four steps alone.
    alone = state_of(train(streaming(root / "two", "from-counts"), continue_from=checkpoint_of(root)))
    last, hits = f"{FREQUENCIES}.last_step", f"{FREQUENCIES}.num_hits"
    assert alone[last].min() == 0
    assert whole[last].min() < 0
    assert torch.equal(alone[last][alone[last] > 0], whole[last][whole[last] > 0]), "the same batches"
    assert whole[hits].sum() > alone[hits].sum()


def test_sums_can_be_reset(root: Path) -> None:
    config = config_of(root / "two", name="reset", max_steps=1, continuation={"optimizer_state": "reset"})
    train(config, continue_from=checkpoint_of(root))
    kept = config_of(root / "two", name="kept", max_steps=1)
    train(kept, continue_from=checkpoint_of(root))
    sums = [
        sum(float(value.sum()) for name, value in state_of(latest_checkpoint(c.model_dir("checkpoints"))).items()
            if name.startswith("optimizer.tables"))
        for c in (config, kept)
    ]  # fmt: skip
    assert 0.0 < sums[0] < 0.8 * sums[1]


def test_frozen_towers_stay_and_tables_learn(root: Path) -> None:
    config = config_of(root / "two", name="frozen", continuation={"freeze_towers": True})
    state = state_of(train(config, continue_from=checkpoint_of(root)))
    before = state_of(checkpoint_of(root))
    towers = [name for name in before if name.startswith("model.") and "embedding_bags" not in name]
    assert towers
    assert all(torch.equal(state[name], before[name]) for name in towers)
    fresh_and_carried(0, 1, root, "rows")
    carried = read_whole(root / "carried-rows-1")
    (table,) = [name for name in table_entries(before, "item_id") if name.startswith("model.")]
    assert not torch.equal(state[table], carried[table])


def test_a_continued_run_resumes_exactly_and_must_name_its_origin(root: Path) -> None:
    whole = config_of(root / "two", name="whole")
    train(whole, continue_from=checkpoint_of(root))
    train(config_of(root / "two", name="parts", max_steps=2), continue_from=checkpoint_of(root))
    parts = config_of(root / "two", name="parts")
    with pytest.raises(ValueError, match="it used a previous artifact, which is not given now"):
        train(parts)
    train(parts, continue_from=checkpoint_of(root))
    found, other = (state_of(latest_checkpoint(c.model_dir("checkpoints"))) for c in (whole, parts))
    assert found.keys() == other.keys()
    assert all(torch.equal(found[name], other[name]) for name in found)


def test_the_checkpoint_keeps_the_vocabularies_of_its_dataset(root: Path) -> None:
    checkpoint = open_artifact(checkpoint_of(root), "checkpoint")
    checkpoint.verify()
    for feature in FEATURES:
        kept, own = (
            pq.read_table(folder / vocabulary_file(feature)) for folder in (checkpoint.path, root / "one/dataset")
        )
        assert kept.equals(own)
        assert str(vocabulary_file(feature)) in checkpoint.manifest.files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": MODEL | {"head_dim": 16, "heads": [{"name": "engagement"}]}}, "model.head_dim was 8, is 16"),
        ({"training": {"optimizer": "adagrad"}}, "training.optimizer was rowwise_adagrad, is adagrad"),
    ],
)
def test_another_model_is_refused(root: Path, changes: dict[str, Any], message: str) -> None:
    config = config_of(root / "two", name="refused")
    tree = config.model_dump(mode="json")
    for section, values in changes.items():
        tree[section] |= values
    with pytest.raises(ValueError, match=message):
        train(Config.model_validate(tree), continue_from=checkpoint_of(root))
    assert not config.model_dir("checkpoints").exists()


def test_other_features_or_another_sharding_kind_are_refused(root: Path, tmp_path: Path) -> None:
    table = {"item_id": ["a", "b", "c"], "shop": ["x", "y", "x"]}
    events = [(f"u{user}", "abc"[(user + t) % 3], t) for user in range(30) for t in range(4)]
    prepare_tables(tmp_path, events, table, id_features=["shop"], split={"kind": "user"})
    with pytest.raises(ValueError, match="its id features are item_id, brand; the dataset has item_id, shop"):
        train(config_of(tmp_path), continue_from=checkpoint_of(root))
    config = config_of(root / "two", name="copies").model_copy(
        update={"sharding": tiny_config(root, sharding={"default": "data_parallel"}).sharding}
    )
    with pytest.raises(ValueError, match="data-parallel ones stay data-parallel"):
        train(config, continue_from=checkpoint_of(root))


def test_a_vocabulary_of_another_type_or_none_is_named(root: Path, tmp_path: Path) -> None:
    table = {"item_id": [1, 2, 3], "brand": ["x", "y", "x"]}
    events = [(f"u{user}", 1 + (user + t) % 3, t) for user in range(30) for t in range(4)]
    prepare_tables(tmp_path, events, table, id_features=["brand"], split={"kind": "user"})
    with pytest.raises(ValueError, match=r"values of item_id are int64, but (large_)?string in"):
        train(config_of(tmp_path), continue_from=checkpoint_of(root))
    dataset = tmp_path / "dataset"
    pq.write_table(pa.table({"value": ["x"], "row": pa.array([1], pa.int32())}), dataset / vocabulary_file("item_id"))
    with pytest.raises(ValueError, match="the manifest says"):
        train(config_of(tmp_path), continue_from=checkpoint_of(root))


def write_cut(root: Path, split: dict[str, Any]) -> Config:
    """The same log of 60 instants, cut somewhere."""
    rng = np.random.default_rng(4)
    events = [(f"u{user}", f"i{rng.choice(30)}", t) for user in range(20) for t in range(user % 3, 60, 5)]
    table = {"item_id": [f"i{item}" for item in range(30)], "brand": [f"b{item // 5}" for item in range(30)]}
    prepare_tables(root, events, table, id_features=["brand"], split=split)
    return config_of(root, max_steps=1, checkpoint_every=1)


def test_a_model_that_may_know_the_test_period_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cuts: dict[str, dict[str, Any]] = {
        "at 30": {"cutoff": 30},
        "at 40": {"cutoff": 40},
        "by user": {"kind": "user"},
        "by user, less": {"kind": "user", "test_fraction": 0.5},
    }
    configs = {name: write_cut(tmp_path / name, split) for name, split in cuts.items()}
    last = {name: train(configs[name]) for name in ("at 30", "at 40", "by user", "by user, less")}
    period = open_artifact(last["by user"], "checkpoint").summary["period"]
    written = Written.read(configs["by user"].dataset_dir)
    trained, tested = (
        [time for rows in of_users.values() for _, time in rows] for of_users in (written.histories, written.test)
    )
    assert period == {"train_end": max(trained) + 1, "test_begin": min(tested), "user_test_fraction": 0.2}

    def go_on(name: str, before: Path, **continuation: bool) -> Path:
        config = configs[name]
        shutil.rmtree(config.model_dir("checkpoints"))
        continued = config.training.model_copy(
            update={"continuation": config.training.continuation.model_copy(update=continuation)}
        )
        return train(config.model_copy(update={"training": continued}), continue_from=before)

    kept = {name: shutil.copytree(path, tmp_path / "kept" / name) for name, path in last.items()}
    for name, before in (("at 30", "at 40"), ("at 40", "by user"), ("by user, less", "by user")):
        with pytest.raises(
            ValueError, match=r"trained on events until \d+, and the test period of this .*check_period"
        ):
            train(configs[name], continue_from=kept[before])
    for name, before in (("at 40", "at 30"), ("by user", "at 30"), ("by user", "by user, less")):
        go_on(name, kept[before])
    with caplog.at_level("WARNING"):
        tainted = go_on("at 30", kept["at 40"], check_period=False)
    assert "trained on events until 39, and the test period of this dataset begins at 30" in caplog.text
    # What it has seen stays with the model: the next period is compared with that, too.
    assert open_artifact(tainted, "checkpoint").summary["period"]["train_end"] == 40


def test_a_model_that_may_know_what_is_held_back_to_choose_by_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = train(write_cut(tmp_path / "before", {"cutoff": 30}))
    config = write_cut(tmp_path / "now", {"cutoff": 40})
    chosen = config.training.model_copy(update={"max_steps": None, "epochs": "auto", "max_epochs": 1})
    for name, fraction in (("old and new", 0.5), ("new", 0.2)):
        held_back = config.validation.model_copy(update={"fraction": fraction})
        caplog.clear()
        train(
            config.model_copy(update={"name": name, "training": chosen, "validation": held_back}), continue_from=before
        )
        begin = ValidationDataset(open_dataset(config.dataset_dir), held_back, config.seed).summary.cutoff
        told = f"trained on events until 29, and what is held back of this dataset's T1 begins at {begin:.0f}"
        assert begin is not None
        assert (told in caplog.text) == (begin < 30) == (name == "old and new")


def test_what_a_forced_run_has_seen_is_not_forgotten() -> None:
    first = Period(train_end=90, test_begin=10, user_test_fraction=0.2)
    more_held_back = Period(train_end=60, test_begin=5, user_test_fraction=0.5)
    assert why_it_may_leak(first, more_held_back)
    forced = more_held_back.after(first)
    assert forced == Period(train_end=90, test_begin=5, user_test_fraction=None)
    assert why_it_may_leak(forced, more_held_back)
    for unknown in (None, Period(train_end=None, test_begin=None, user_test_fraction=None)):
        later = Period(train_end=200, test_begin=200, user_test_fraction=None)
        assert later.after(unknown).train_end is None
        assert why_it_may_leak(later.after(unknown), later)
    # Nothing was forced: what the later period trains on holds what the earlier one did.
    grown = Period(train_end=120, test_begin=10, user_test_fraction=0.2)
    assert grown.after(first) == grown


def test_a_checkpoint_from_before_periods_were_recorded_is_taken_only_knowingly(root: Path, tmp_path: Path) -> None:
    old = shutil.copytree(checkpoint_of(root), tmp_path / "step-00000004")
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["summary"]["period"]
    (old / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(ValueError, match=r"does not say which events.*training.continuation.check_period=false"):
        train(config_of(root / "two", name="unknown"), continue_from=old)
    train(config_of(root / "two", name="unknown", continuation={"check_period": False}, max_steps=1), continue_from=old)
    last = train(config_of(root / "two", name="unknown", continuation={"check_period": False}), continue_from=old)
    two = config_of(root / "two")
    with pytest.raises(ValueError, match="does not say at which instant"):
        open_previous(last, two.model, two.training, open_dataset(root / "two" / "dataset").summary)


def test_verb(root: Path) -> None:
    from typer.testing import CliRunner

    recipe = root / "two" / "recipe.yaml"
    recipe.write_text(config_of(root / "two", name="verb").model_dump_json())
    ran = CliRunner().invoke(app, ["train", str(recipe), "--continue-from", str(checkpoint_of(root))])
    assert ran.exit_code == 0, ran.output
    assert "Continued from" in ran.output
    state = open_artifact(latest_checkpoint(root / "two" / "verb" / "checkpoints"), "checkpoint")
    assert state.manifest.inputs["previous"] == open_artifact(checkpoint_of(root), "checkpoint").manifest.digest
    assert (state.path / STATE).is_dir()
