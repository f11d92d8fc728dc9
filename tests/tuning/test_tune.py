"""A search over real training processes: its trials, its tuned recipe, and that a killed one goes on."""

from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from synthetic_dataset import random_histories, write_dataset
from tiny_run import tiny_config

from mtmh.config import Config, load_config
from mtmh.tuning.page import write_page
from mtmh.tuning.space import draw, own_settings, put
from mtmh.tuning.study import JOURNAL, PAGE, best_trial, tune

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "dataset", random_histories(60, num_items=200), num_items=200, test={3: [1, 2]})
    model = {"heads": [{"name": "engagement"}]}
    config = tiny_config(tmp_path, "tiny", model=model, training={"epochs": "auto", "max_epochs": 1, "patience": 1})
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def test_a_search_measures_the_recipe_first_goes_on_and_writes_a_recipe_of_the_best(recipe: Path) -> None:
    config = load_config(recipe)
    said: list[str] = []
    out = recipe.with_name("mine-tuned.yaml")
    tune(config, str(recipe), 5.0, out, said.append, max_trials=1)
    assert said[0].startswith("the recipe's own settings: score 0.")
    folder = config.paths.root / "tiny" / "tuning"
    study = optuna.load_study(study_name="tiny", storage=_storage(folder))
    study.ask()  # as a killed search leaves it
    study = tune(config, str(recipe), 5.0, out, said.append, max_trials=1)
    states = [trial.state for trial in study.trials]
    assert states[:2] == [TrialState.COMPLETE, TrialState.FAIL]
    assert len(states) == 3
    first, last = study.trials[0], study.trials[2]
    assert {key: first.params[key] for key in own_settings(config)} == own_settings(config)
    assert last.params != first.params
    best = best_trial(study)
    assert max(score for _, score in best.user_attrs["curve"]) == max(
        score for trial in (first, last) for _, score in trial.user_attrs["curve"]
    )
    tuned = load_config(out)
    assert tuned.name == "tiny-tuned"
    wanted = put(config.model_dump(mode="json"), best.user_attrs["settings"] | {"name": "tiny-tuned"})
    assert tuned == Config.model_validate(wanted)
    page = (folder / PAGE).read_text()
    assert page.count("<tr") == 3, "a head and two measured trials"
    with pytest.raises(ValueError, match="from other settings"):
        tune(load_config(recipe, ["pairs.window=7"]), str(recipe), 1.0, out, said.append)
    assert not list(folder.glob("trial-*/tiny")), "checkpoints of trials go"
    assert (folder / "trial-0002" / "recipe.yaml").is_file()


def test_settings_that_cannot_be_trained_say_why(recipe: Path) -> None:
    config = load_config(recipe, ["model.heads=[{name: engagement, relevance_weight: 0.5}]"])
    with pytest.raises(ValueError, match=r"own settings could not be measured.*content"):
        tune(config, str(recipe), 1.0, recipe.with_name("out.yaml"), print, max_trials=1)
    assert not recipe.with_name("out.yaml").exists()


def test_every_draw_is_a_recipe_and_the_page_tells_what_mattered(recipe: Path, tmp_path: Path) -> None:
    base = load_config(recipe).model_dump(mode="json")
    base["model"]["heads"].append({"name": "relevance", "relevance_weight": 0.5})
    config = Config.model_validate(base)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(12):
        trial = study.ask()
        settings = draw(trial, config)
        Config.model_validate(put(config.model_dump(mode="json"), settings))
        score = settings["training.learning_rate"]
        for name, value in (("settings", settings), ("seconds", 1.0), ("curve", [[1.0, score]])):
            trial.set_user_attr(name, value)
        study.tell(trial, score)
        assert trial.number == number
    write_page(study, "mine", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    mattered = page.partition("What mattered")[2]
    assert mattered.index("training.learning_rate") < mattered.index("pairs.window")


def _storage(folder: Path) -> optuna.storages.BaseStorage:
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL)))
