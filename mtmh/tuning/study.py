"""The story of a search: trials one after the other until time is up, and the recipe of the best."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from mtmh.artifacts import write_atomically
from mtmh.config import Config, decisive
from mtmh.config.recipe import apply_override
from mtmh.data.dataset import open_dataset
from mtmh.training.early_stopping import SCORE, Point
from mtmh.tuning.page import write_page
from mtmh.tuning.space import Settings, draw, own_settings, put
from mtmh.tuning.trials import LOG, run_trial

JOURNAL = Path("study.journal")
PAGE = Path("tuning.html")

_UNPRUNED = 5  # trials before any is stopped early
_SEARCHED = "searched"  # attribute of the search: what it began from
_DRAWN = "settings"  # attributes of a trial
_CURVE = "curve"
_SECONDS = "seconds"


def tune(
    config: Config,
    recipe: str,
    minutes: float,
    out: Path,
    say: Callable[[str], None],
    *,
    overrides: list[str] | None = None,
    max_trials: int | None = None,
) -> optuna.Study:
    """Searches settings on the end of T1 (section ``validation``); nothing of T2 is read.

    The first trial has the recipe's own settings. The others are drawn by a tree of Parzen estimators, and stopped
    where their measurements fall behind the median of the trials before. A search that was stopped or killed goes on.

    Args:
        config: the recipe; dataset and content embeddings must exist.
        recipe: its name or file, as the tuned recipe extends it.
        minutes: of this call.
        out: the tuned recipe.
        say: takes a line about each trial.
        overrides: of the recipe, which the tuned one takes over.
        max_trials: ends the search earlier.

    Returns:
        the search with all trials.

    Raises:
        ValueError: no dataset, a search from other settings stands there, or no trial could be measured; the message
            says which.
    """
    dataset = open_dataset(config.dataset_dir)
    folder = config.paths.root / config.name / "tuning"
    folder.mkdir(parents=True, exist_ok=True)
    study = _open(folder, config, decisive(config, "checkpoint") | {"dataset": dataset.artifact.manifest.digest})
    deadline = time.monotonic() + 60.0 * minutes
    tried = 0
    while time.monotonic() < deadline and (max_trials is None or tried < max_trials):
        tried += 1
        trial = study.ask()
        settings = draw(trial, config)
        place = folder / f"trial-{trial.number:04d}"
        started = time.monotonic()
        curve = run_trial(config, settings, place, deadline, partial(_stop, trial))
        trial.set_user_attr(_DRAWN, settings)
        trial.set_user_attr(_SECONDS, round(time.monotonic() - started, 1))
        trial.set_user_attr(_CURVE, [[point.epoch, point.measured[SCORE]] for point in curve])
        _tell(study, trial, curve, time.monotonic() < deadline)
        if not curve and trial.number == 0 and time.monotonic() < deadline:
            last = (place / LOG).read_text().strip().splitlines()[-1:]
            raise ValueError(f"the recipe's own settings could not be measured: {''.join(last) or place / LOG}")
        say(_line(study, trial.number, curve))
        write_page(study, config.name, folder / PAGE)
    write_atomically(out, _tuned_recipe(config, recipe, overrides or [], best_trial(study).user_attrs[_DRAWN], out))
    return study


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial:
    """The trial with the best measurement, whether it ran to its end or not.

    Raises:
        ValueError: none was measured.
    """
    measured = [trial for trial in study.trials if trial.user_attrs.get(_CURVE)]
    if not measured:
        raise ValueError("no trial was measured in this time; give the search more minutes")
    return max(measured, key=lambda trial: max(score for _, score in trial.user_attrs[_CURVE]))


def _open(folder: Path, config: Config, searched: dict[str, Any]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    known = {known.study_name: known for known in optuna.get_all_study_summaries(storage)}
    before = known[config.name].n_trials if config.name in known else 0  # so that a later call draws other settings
    study = optuna.create_study(
        storage=storage,
        study_name=config.name,
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=config.seed + before),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED),
    )
    searched = json.loads(json.dumps(searched))
    if before and study.user_attrs.get(_SEARCHED) != searched:
        raise ValueError(
            f"{folder}: a search from other settings or another dataset; remove the folder, or give the recipe another"
            " name"
        )
    study.set_user_attr(_SEARCHED, searched)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # of a search that was killed
        study.tell(trial.number, state=TrialState.FAIL)
    if not study.trials:
        study.enqueue_trial(own_settings(config))
    return study


def _tuned_recipe(config: Config, recipe: str, overrides: list[str], settings: Settings, out: Path) -> str:
    """The recipe with other settings, under another name, so that both models can stand side by side."""
    base, file = recipe, Path(recipe)
    if file.is_file():  # a recipe finds one beside it by its name alone
        base = file.stem if file.resolve().parent == out.resolve().parent else str(file.resolve())
    tree: Settings = {"extends": base, "name": f"{config.name}-tuned"}
    for override in overrides:
        apply_override(tree, override)
    return yaml.safe_dump(put(tree, settings), sort_keys=False)


def _stop(trial: optuna.Trial, step: int, score: float) -> bool:
    trial.report(score, step)
    return trial.should_prune()


def _tell(study: optuna.Study, trial: optuna.Trial, curve: list[Point], in_time: bool) -> None:
    if not curve:
        study.tell(trial, state=TrialState.FAIL)
    elif not in_time or trial.should_prune():
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, max(point.measured[SCORE] for point in curve))


def _line(study: optuna.Study, number: int, curve: list[Point]) -> str:
    trial = study.trials[number]
    state = {TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}.get(trial.state, "done")
    score = f"score {max(point.measured[SCORE] for point in curve):.4f}" if curve else "not measured"
    name = "the recipe's own settings" if number == 0 else f"trial {number}"
    best = best_trial(study).number if any(other.user_attrs.get(_CURVE) for other in study.trials) else number
    return f"{name}: {score}, {trial.user_attrs[_SECONDS]:.0f} s, {state}; best so far: trial {best}"
