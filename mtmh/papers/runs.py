"""Trains and evaluates the models that a page needs, each as ``mtmh run`` does: what is unchanged is not done again."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import cast

from mtmh.config import Config, load_config
from mtmh.errors import last_words
from mtmh.papers.adaptive import measure_adaptive
from mtmh.papers.convergence import measure_convergence
from mtmh.papers.models import STAGES, VECTORS, WATCH, PaperModel, Source
from mtmh.papers.vectors import evaluate_vectors
from mtmh.start.run import run_stages

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A model under one seed.

    Attributes:
        model: that is trained.
        seed: of its weights and of the order of its pairs. Data, split and evaluated users are the same for all.
        recipe: with the model's variants.
        overrides: of that recipe.
    """

    model: PaperModel
    seed: int
    recipe: str
    overrides: list[str]

    @cached_property
    def config(self) -> Config:
        """All settings."""
        return load_config(self.recipe, self.overrides)

    @property
    def evaluation(self) -> Path:
        """The folder of the evaluation artifact."""
        return self.config.model_dir("evaluation")

    @property
    def command(self) -> str:
        """The command that makes the artifacts of this run."""
        module, *words = self._words
        return shlex.join(["mtmh", *words] if module == STAGES else ["python", "-m", module, *words])

    @property
    def _words(self) -> list[str]:
        """A module and its arguments."""
        settings = [word for override in self.overrides for word in ("--set", override)]
        return [*self.model.entry, self.recipe, *settings]

    def do(self, say: Say) -> None:
        """Runs the stages that are missing or outdated, in this process.

        Raises:
            ValueError: a stage has failed.
        """
        module, *arguments = self.model.entry
        if module == STAGES:
            run_stages(self.config, say)
        elif module == VECTORS:
            evaluate_vectors(cast(Source, arguments[0]), self.config)
        elif module == WATCH:
            measure_convergence(self.config)
        else:
            measure_adaptive(self.config)

    def do_apart(self) -> None:
        """The same in a process of its own, with one thread; output goes to a log.

        Raises:
            ValueError: a stage has failed; the message has its last line.
        """
        log = self.config.paths.root / f"{self.config.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            done = subprocess.run(
                [sys.executable, "-m", *self._words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                check=False,
            )
        if done.returncode:
            raise ValueError(f"{last_words(done.returncode, log)} ({log})")


@dataclass
class Runs:
    """All runs of a page.

    Attributes:
        planned: all of them, in their order.
        failed: name of a run -> the reason.
        seconds: name of a run that came to its end -> how long it took; little where all was there.
    """

    planned: list[Run]
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def by_model(self) -> dict[str, list[Run]]:
        """Name of a model -> its runs, one a seed, those that came to their end; no model without any."""
        found: dict[str, list[Run]] = {}
        for run in self.planned:
            if run.config.name in self.seconds:
                found.setdefault(run.model.name, []).append(run)
        return found

    @property
    def missing(self) -> list[str]:
        """Names of the models of which some run has neither come to its end nor failed."""
        over = self.seconds.keys() | self.failed.keys()
        return list(dict.fromkeys(run.model.name for run in self.planned if run.config.name not in over))


def plan_runs(recipe: str, models: Iterable[PaperModel], seeds: Sequence[int], shared: list[str]) -> list[Run]:
    """The runs of models and seeds, all seeds of a model one after another.

    Args:
        recipe: name or file.
        models: that are needed.
        seeds: of training.
        shared: overrides of all runs.
    """
    runs = []
    for model in models:
        overrides = model.overrides(recipe, shared)
        runs += [
            Run(
                model,
                seed,
                model.recipe(recipe),
                [*overrides, f"training.seed={seed}", f"name={model.folder}-seed{seed}"],
            )
            for seed in seeds
        ]
    return _sharing_a_preranker(runs)


def do_runs(runs: list[Run], jobs: int, say: Say, show: Callable[[Runs], None]) -> None:
    """Does the first run, which makes what all share, then the others.

    Args:
        runs: of `plan_runs`.
        jobs: at the same time; above 1 in processes of one thread each, else in this one, which need not start anew.
        say: takes a line about each run.
        show: called whenever all runs of a model are over, at last with none missing; one call at a time.

    Raises:
        ValueError: the first one has failed, and with it what the others need.
    """
    done, one_at_a_time = Runs(runs), Lock()

    def do(run: Run) -> None:
        name, started, reason = run.config.name, time.monotonic(), ""
        try:
            if jobs > 1:
                run.do_apart()
            else:
                run.do(lambda line: say(f"{name}: {line}"))
        except (ValueError, RuntimeError) as error:  # the loss is no number: others may do better
            if run is runs[0]:
                raise ValueError(f"{name}: {error}") from error
            reason = str(error)
        with one_at_a_time:
            if reason:
                done.failed[name] = reason
                say(f"{name}: failed, {reason}")
            else:
                done.seconds[name] = round(time.monotonic() - started, 1)
                say(f"{name}: {done.seconds[name]:.0f} s")
            if run.model.name not in done.missing:
                show(done)

    first, *others = runs
    do(first)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(do, others))


def _sharing_a_preranker(runs: list[Run]) -> list[Run]:
    """The runs, where the preranker knows nothing of a model with that of the first such run."""
    shared, home = [], ""
    for run in runs:
        config = run.config
        if config.preranker.head_embeddings or not config.retrieval.needs_preranker:
            shared.append(run)
        elif not home:
            home = f"paths.preranker={config.paths.root / config.name}"
            shared.append(run)
        else:
            shared.append(Run(run.model, run.seed, run.recipe, [*run.overrides, home]))
    return shared
