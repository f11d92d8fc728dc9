"""A trial: a process of ``mtmh train`` whose measurements are watched while it runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from mtmh.config import Config
from mtmh.training.early_stopping import SCORE, Point, read_validation_curve
from mtmh.training.newest import VALIDATION
from mtmh.tuning.space import Settings, put

LOG = Path("log.txt")

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 30.0


def run_trial(
    config: Config, settings: Settings, folder: Path, deadline: float, is_hopeless: Callable[[int, float], bool]
) -> list[Point]:
    """Trains the first run of ``training.epochs: auto`` with other settings, until it ends or is not worth its time.

    Args:
        config: the recipe; its dataset and content embeddings are read, nothing of it is written.
        settings: by dotted key, in the place of the recipe's.
        folder: of the trial; keeps its recipe and log.
        deadline: by the monotonic clock; a trial that still runs then is stopped.
        is_hopeless: takes quarters of an epoch and the score after them; True: stop.

    Returns:
        The points measured, none if it failed (the log says why).
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipe = folder / "recipe.yaml"
    paths = {"root": str(folder), "dataset": str(config.dataset_dir), "content": str(config.content_dir)}
    fixed = {"training.epochs": "auto", "training.max_steps": None, "training.final": "keep"}
    tree = put(config.model_dump(mode="json") | {"paths": paths}, settings | fixed)
    recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
    checkpoints = folder / config.name / "checkpoints" / VALIDATION
    curve: list[Point] = []
    with (folder / LOG).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mtmh.cli", "train", str(recipe)], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                found = read_validation_curve(checkpoints)
                new, curve = found[len(curve) :], found
                if any(is_hopeless(round(4 * point.epoch), point.measured[SCORE]) for point in new):
                    break
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    curve = read_validation_curve(checkpoints)
    shutil.rmtree(folder / config.name, ignore_errors=True)
    return curve
