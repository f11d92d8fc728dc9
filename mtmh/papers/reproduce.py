"""The story of a reproduction: the models that its tables need, what was measured of them, one page."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from mtmh.artifacts import write_atomically
from mtmh.config import Config, load_config
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.papers.adaptive import ADAPTIVE, read_adaptive
from mtmh.papers.claims import judge, judge_adaptive
from mtmh.papers.convergence import CONVERGENCE, read_drifts
from mtmh.papers.figures import measured_rows
from mtmh.papers.models import (
    ADAPTED,
    MODELS,
    NEEDED,
    NEXT_ITEM,
    PARTS,
    VECTORS,
    WATCH,
    WATCHED,
    WITHOUT_CONTENT,
    PaperModel,
    Part,
)
from mtmh.papers.page import Page, html, markdown
from mtmh.papers.runs import Runs, Say, do_runs, plan_runs
from mtmh.papers.tables import adaptive_tables, drawing_7, make_figures, make_tables

PAGE = Path("papers.html")
TEXT = Path("papers.md")
RESULTS = Path("papers.json")

# Small enough for half an hour on two cores. Two heads of 500 fill a list of 500 from one trigger.
QUICK: dict[str, Any] = {
    "pairs.window": 5,
    "model.embedding_dim": 32,
    "model.head_dim": 32,
    "loss.num_uniform_negatives": 256,
    "training.batch_size": 600,
    "training.epochs": 3,
    "training.max_epochs": 3,
    "preranker.training.epochs": 2,
    "preranker.check_users": 100,
    "preranker.linear_items": 2000,
    "retrieval.k_ann": 500,
    "evaluation.num_users": 400,
}
# Two heads of 500 would find half of so few items by every trigger, whatever they learned.
QUICK_CATALOGUE = {
    "data.options.num_users": 1200,
    "data.options.num_items": 2000,
    "data.options.num_events": 48_000,
    "retrieval.k_ann": 75,
}


def reproduce(
    recipe: str,
    parts: Sequence[Part],
    seeds: Sequence[int],
    say: Say,
    *,
    without: Sequence[str] = (),
    quick: bool = False,
    jobs: int = 1,
    overrides: Sequence[str] = (),
) -> Path:
    """Measures tables and figures of the papers on the data of a recipe; what is there and unchanged stays.

    The page is written whenever a model is done, with what is there by then.

    Args:
        recipe: name or file.
        parts: tables and figures; none: all that the recipe's protocol is for.
        seeds: of training; more can be added later.
        say: takes a line about each run.
        without: names of models to leave out.
        quick: with small sizes; of the recipe ``synthetic`` the catalogue is small too.
        jobs: runs at the same time, one thread each if above 1.
        overrides: ``KEY=VALUE`` of the recipe, for all models.

    Returns:
        The page; beside it the same as Markdown and JSON.

    Raises:
        ValueError: the recipe does not fit, or the first model could not be trained.
    """
    shared = list(_shared(recipe, quick=quick, overrides=overrides))
    base = load_config(recipe, shared)
    asks_next = base.evaluation.given_events > 0
    if NEXT_ITEM in parts and not asks_next:
        raise ValueError(
            f"{recipe}: {NEXT_ITEM} is for recipes that set evaluation.given_events, as sports-leave-one-out"
        )
    parts = parts or [part for part in PARTS if (part == NEXT_ITEM) == asks_next]
    models, left_out = _models(parts, base, without)
    if not base.model.needs_teacher:
        shared.append("pairs.sim={kind: none}")
    if not models:
        reason = " ".join(left_out) or "The recipe has no teacher."
        raise ValueError(f"{recipe}: {reason} Nothing of {', '.join(parts)} is left")
    if models[0].entry[0] in (VECTORS, WATCH):
        raise ValueError(f"{recipe}: {left_out[-1]} {models[0].name} needs the data and the preranker of one of them")
    words = ["mtmh", "reproduce", recipe, *(["--quick"] if quick else []), "--only", ",".join(parts)]
    words += ["--seeds", ",".join(map(str, seeds)), *(word for name in without for word in ("--without", name))]
    words += [word for override in overrides for word in ("--set", override)]
    folder = base.paths.root

    def show(runs: Runs) -> None:
        page = _page(base, parts, seeds, runs, left_out, shlex.join(words))
        write_atomically(folder / TEXT, markdown(page))
        write_atomically(folder / RESULTS, _as_json(page, runs))
        write_atomically(folder / PAGE, html(page))

    do_runs(plan_runs(recipe, models, seeds, shared), jobs, say, show)
    return folder / PAGE


def _page(
    base: Config, parts: Sequence[Part], seeds: Sequence[int], runs: Runs, left_out: Sequence[str], command: str
) -> Page:
    """What the runs that have come to their end tell of some parts."""
    by_model = runs.by_model
    rows = measured_rows({name: found for name, found in by_model.items() if name in MODELS})
    drifts = {
        name: [read_drifts(run.config.paths.root / run.config.name / CONVERGENCE) for run in found]
        for name, model in WATCHED.items()
        if (found := by_model.get(model.name))
    }
    adapted = by_model.get(ADAPTED.name, [])
    adaptive = [read_adaptive(run.config.paths.root / run.config.name / ADAPTIVE) for run in adapted]
    dataset = open_dataset(base.dataset_dir)
    return Page(
        title=f"The papers' tables on {dataset.summary.source}",
        facts=[*_facts(base, dataset, seeds, runs), *left_out],
        command=command,
        tables=[
            *make_tables(rows, parts),
            *adaptive_tables(adaptive, [run.command for run in adapted]),
        ],
        figures=[*make_figures(rows, parts), *([drawing_7(drifts)] if drifts else [])],
        claims=[*judge(rows, tuple(parts)), *judge_adaptive(adaptive)],
        failed=runs.failed,
    )


def _models(parts: Sequence[Part], base: Config, without: Sequence[str] = ()) -> tuple[list[PaperModel], list[str]]:
    """The models that some parts need and the data and the user allow, and lines on those that are left out."""
    wanted = list(dict.fromkeys(name for part in parts for name in NEEDED[part]))
    known = [name for name in wanted if base.model.needs_teacher or name in WITHOUT_CONTENT]
    lines = []
    if left := [name for name in wanted if name not in known]:
        lines.append(f"The recipe has no teacher, so these are left out: {', '.join(left)}.")
    encoder = base.content.encoder
    if encoder is None or encoder.image is None or encoder.text is None:
        alike = [name for name in known if MODELS[name].modality in ("image", "both")]
        known = [name for name in known if name not in alike]
        if alike:
            lines.append(f"The teacher reads one kind of content, so these are left out: {', '.join(alike)}.")
    models = [MODELS[name] for name in known]
    models += WATCHED.values() if "figure7" in parts and base.model.needs_teacher else ()
    models += [ADAPTED] if "adaptive" in parts and base.model.needs_teacher else ()
    if unwanted := [model.name for model in models if model.name in without]:
        lines.append(f"Left out by wish: {'; '.join(unwanted)}.")
    return [model for model in models if model.name not in without], lines


def _shared(recipe: str, *, quick: bool, overrides: Sequence[str]) -> list[str]:
    """Overrides of all models: the user's own over those of a quick look, in a folder of their own."""
    config = load_config(recipe, list(overrides))
    root = config.paths.root / ("papers-quick" if quick else "papers")
    small = dict(QUICK) if quick else {}
    if quick and config.data.source == "synthetic":
        small |= QUICK_CATALOGUE
    return [*(f"{key}={value}" for key, value in small.items()), *overrides, f"paths.root={root}"]


def _facts(config: Config, dataset: Dataset, seeds: Sequence[int], runs: Runs) -> list[str]:
    summary = dataset.summary
    num_seeds = {name: len(of_model) for name, of_model in runs.by_model.items()}
    fewer = {name: number for name, number in num_seeds.items() if number < len(seeds)}
    return [
        f"{summary.source}: {summary.num_items:,} items, {summary.num_users:,} users,"
        f" {summary.num_train_events:,} events in T1, {summary.num_test_events:,} in T2;"
        f" at most {config.evaluation.num_users:,} users are asked.",
        f"Seeds {', '.join(map(str, seeds))}: of weights and of the order of pairs. Percent, ± half of a 95 % interval"
        " over users (bootstrap) and seeds; differences are paired by user and seed.",
        *(f"{name} has {number} of {len(seeds)} seeds." for name, number in fewer.items()),
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()};"
        f" {sum(runs.seconds.values()) / 60:.0f} minutes of runs in this call.",
        *([f"Still missing: {'; '.join(runs.missing)}."] if runs.missing else []),
    ]


def _as_json(page: Page, runs: Runs) -> str:
    content = {
        **asdict(page),
        "commands": {name: [run.command for run in found] for name, found in runs.by_model.items()},
    }
    return to_json(content, indent=2).decode()
