"""Recipes: what is accepted, what is refused and how the message reads."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mtmh.cli import app
from mtmh.config import Config, load_config, recipe_names, variant_names
from mtmh.config.preranking import PrerankerTrainingConfig
from mtmh.config.training import TrainingConfig

MINIMAL = {"name": "m", "paths": {"root": "runs/m"}, "data": {"source": "synthetic"}}


def write(path: Path, tree: object) -> Path:
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_preranker_without_any_negative_is_refused() -> None:
    for settings in ("in_batch_negatives=false", "training={batch_size: 1, num_shards: 1, shuffle_pairs: 1}"):
        with pytest.raises(ValueError, match="preranker: no negatives"):
            load_config("synthetic", [f"preranker.{settings}", "preranker.num_uniform_negatives=0"])
    smallest = [
        "preranker.training={batch_size: 1, num_shards: 1, shuffle_pairs: 1}",
        "preranker.num_uniform_negatives=1",
    ]
    assert load_config("synthetic", smallest).preranker.training.batch_size == 1


@pytest.mark.parametrize(
    ("num_pairs", "size"),
    [(None, 1536), (10**9, 1536), (4 * 1536, 1536), (4 * 1536 - 1, 1524), (330, 72), (4 * 30, 24), (5, 12)],
)
def test_a_small_dataset_takes_small_steps(num_pairs: int | None, size: int) -> None:
    assert TrainingConfig().sized(num_pairs).global_batch == size
    assert PrerankerTrainingConfig().sized(num_pairs).global_batch == size
    assert TrainingConfig(num_shards=4, batch_size=64).sized(num_pairs).global_batch == 64


def test_defaults_fill_a_minimal_recipe(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "m.yaml", MINIMAL))
    assert [head.name for head in config.model.heads] == ["engagement", "relevance"]
    assert config.model.heads[1].relevance_weight == 0.5
    assert config.dataset_dir == Path("runs/m/dataset")
    assert config.model_dir("index") == Path("runs/m/m/index")


def test_extends_merges_sections_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", {**MINIMAL, "training": {"epochs": 3, "batch_size": 48}})
    child = {
        "extends": "base",
        "name": "c",
        "training": {"epochs": 5},
        "model": {"heads": [{"name": "engagement"}]},
    }
    config = load_config(write(tmp_path / "child.yaml", child))
    assert (config.name, config.training.epochs, config.training.batch_size) == ("c", 5, 48)
    assert len(config.model.heads) == 1
    assert not config.model.needs_teacher


def test_overrides_are_yaml_values(tmp_path: Path) -> None:
    recipe = write(tmp_path / "m.yaml", MINIMAL)
    config = load_config(
        recipe, ["training.batch_size=120", "evaluation.recall_at=[1, 2]", "sharding.default=row_wise"]
    )
    assert config.training.batch_size == 120
    assert config.evaluation.recall_at == [1, 2]
    assert config.sharding.default == "row_wise"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.batchsize=5", r"training\.batchsize: no such setting; did you mean batch_size\?"),
        ("alpha=70", r"m\.yaml: alpha: no such setting; did you mean loss\.gradnorm\.alpha or retrieval\.alpha\?"),
        ("model.heads=[{name: a, weight: 1}]", r"model\.heads\.0\.weight: no such setting"),
        (
            "data.split={kind: user, colour: 5}",
            r"data\.split\.colour: .* may stand cutoff, kind, test_events, test_fraction",
        ),
        ("training.batch_size=50", "multiple of training.num_shards"),
        ("training.epochs=three", r"m\.yaml: training\.epochs: .*valid integer, .* as an integer, or 'auto'$"),
        ("plan.rows={item_id: x}", r"m\.yaml: plan\.rows\.item_id: .*valid integer"),
        ("training.batch_size", "expected dotted.key=value"),
        ("name.first=a", "name is a value, not a section"),
        ("loss.temperature=0", r"loss\.temperature: .*greater than 0"),
        ("loss.temperature=[", "not valid YAML"),
        ("model.heads=[]", "at least one head"),
        ("model.heads=[{name: a, engagement_weight: 0}]", "has no loss"),
        ("pairs.sim.kind=feature", "pairs.sim.feature"),
        ("content.kind=transformers", "content.model"),
        ("retrieval.k=2000", "exceeds retrieval.k_ann"),
        ("data.split={kind: user, cutoff: 5}", "needs split.kind = time"),
        ("loss={in_batch_negatives: false, num_uniform_negatives: 0}", "no negatives"),
        ("chain.env={A: b, HOSTS: 'c,d'}", r"chain\.env: .*HOSTS=c,d: a value cannot hold a comma"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path / "m.yaml", MINIMAL), [override])


@pytest.mark.parametrize("text", ["{on: both}", '{"on": both}', "{'on': both, b: 0.5}"])
def test_the_old_name_of_count_of_is_read_and_told(tmp_path: Path, text: str) -> None:
    recipe = write(tmp_path / "m.yaml", MINIMAL)
    with pytest.warns(FutureWarning, match=r"loss\.propensity\.on is called loss\.propensity\.count_of now"):
        config = load_config(recipe, [f"loss.propensity={text}"])
    assert config.loss.propensity is not None
    assert config.loss.propensity.count_of == "both"
    assert config.loss.propensity.b == 0.5


def test_both_names_of_count_of_are_one_too_many(tmp_path: Path) -> None:
    recipe = write(tmp_path / "m.yaml", MINIMAL)
    with pytest.raises(ValueError, match=r"loss\.propensity\.on: no such setting"):
        load_config(recipe, ["loss.propensity={'on': both, count_of: trigger}"])


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- 1", "expected a mapping")])
def test_a_broken_recipe_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"broken.yaml: {message}"):
        load_config(path)


def test_an_unknown_recipe_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no recipe nowhere: .*synthetic"):
        load_config("nowhere")
    with pytest.raises(ValueError, match=r"no recipe dmeo: no such file; did you mean demo\?"):
        load_config("dmeo")
    write(tmp_path / "mine.yaml", MINIMAL)
    with pytest.raises(ValueError, match=r"mien.yaml: no such file; did you mean .*/mine\.yaml\?"):
        load_config(tmp_path / "mien.yaml")


def test_a_recipe_that_extends_itself_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {"extends": "b"})
    write(tmp_path / "b.yaml", {"extends": "a"})
    with pytest.raises(ValueError, match="extends itself"):
        load_config(tmp_path / "a.yaml")


BASELINES = {
    "hllm": {"content_dim", "heads", "id_features"},
    "itemcf": {
        "content_dim", "embedding_dim", "float_features", "head_hidden", "heads", "id_features"
    },
    "mol": {"content_dim", "heads"},
    "neucf": {"content_dim", "heads", "id_features"},
}  # fmt: skip


@pytest.mark.parametrize("variant", BASELINES)
def test_a_baseline_changes_the_model_alone(tmp_path: Path, variant: str) -> None:
    recipe = write(tmp_path / "m.yaml", MINIMAL)
    plain, varied = load_config(recipe).model_dump(), load_config(f"{recipe}+{variant}").model_dump()
    assert varied.pop("name") == variant != plain.pop("name")
    before, after = plain.pop("model"), varied.pop("model")
    assert varied == plain
    assert {key for key in before if before[key] != after[key]} == BASELINES[variant]


def test_the_paper_keeps_data_and_evaluated_users(tmp_path: Path) -> None:
    recipe = write(tmp_path / "m.yaml", MINIMAL)
    plain, varied = load_config(recipe), load_config(f"{recipe}+paper")
    assert (varied.data, varied.seed, varied.content) == (plain.data, plain.seed, plain.content)
    assert varied.evaluation.num_users == plain.evaluation.num_users
    assert varied.model.heads == plain.model.heads


@pytest.mark.parametrize(
    "variant",
    [name for name in variant_names() if not name.startswith("teacher-") and name not in {*BASELINES, "paper"}],
)
def test_a_variant_of_the_model_changes_name_and_one_part_only(tmp_path: Path, variant: str) -> None:
    parts = {"hash-zch": ("model", "id_tables"), "streaming": ("loss", "log_q")}
    section, part = parts.get(variant, ("model", "heads"))
    recipe = write(tmp_path / "m.yaml", MINIMAL)
    plain, varied = load_config(recipe).model_dump(), load_config(f"{recipe}+{variant}").model_dump()
    assert varied.pop("name") == variant != plain.pop("name")
    assert varied[section].pop(part) != plain[section].pop(part)
    assert varied == plain


@pytest.mark.parametrize("variant", [name for name in variant_names() if name.startswith("teacher-")])
def test_a_variant_of_the_teacher_changes_content_only(tmp_path: Path, variant: str) -> None:
    recipe = write(tmp_path / "m.yaml", MINIMAL)
    plain, varied = load_config(recipe), load_config(f"{recipe}+{variant}")
    assert varied.content.encoder is not None
    assert varied.model_copy(update={"content": plain.content}) == plain


def test_a_recipe_can_extend_a_recipe_with_variants(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", MINIMAL)
    child = write(tmp_path / "child.yaml", {"extends": "base+single-task", "seed": 3})
    assert load_config(child) == load_config(f"{tmp_path / 'base.yaml'}+single-task", ["seed=3"])


def test_an_unknown_variant_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no variant nope: .*mtsh, .*single-task, stmh"):
        load_config(f"{write(tmp_path / 'm.yaml', MINIMAL)}+nope")


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_survives_a_round_trip(name: str) -> None:
    config = load_config(name)
    assert config.description, "a recipe says what it is for"
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_what_show_prints_is_the_recipe_again(tmp_path: Path) -> None:
    description = (
        "More words than a line of eighty letters has room for, as recipes like to have, with [bold]brackets[/bold]."
    )
    recipe = write(tmp_path / "m.yaml", {**MINIMAL, "description": description})
    shown = CliRunner().invoke(app, ["show", str(recipe)])
    assert shown.exit_code == 0
    (tmp_path / "shown.yaml").write_text(shown.stdout)
    assert load_config(tmp_path / "shown.yaml") == load_config(recipe)
