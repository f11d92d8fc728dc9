"""Minutes until the validation recall is within a hundredth of its best: ours, implicit's ALS, RecTools' SASRec.

    mtmh prepare movielens --set data.input=data/movielens-latest-small && mtmh content movielens
    python -m benchmarks.time_to_quality movielens --set data.input=data/movielens-latest-small \
        --rectools rectools/bin/python --out runs/time-to-quality

All train on the histories that ``mtmh train`` measures its length on (T1 without its end), on the same cores one after
another, and are asked for what the same users engaged with after that, without what they had: recall@100. Ours is the
curve of a run of ``mtmh train`` with the recipe's defaults, its time from the start of the command to each measurement,
measurements included; the run on all of T1 that follows is not waited for. The others are fitted anew with more and
more passes; their time is that of the fit alone, without reading data or answering.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.report import report_head
from benchmarks.sequence_models import CUTS, LENGTH, their_lists
from mtmh.config import Config, load_config
from mtmh.data.dataset import EvaluationUsers, open_dataset
from mtmh.data.histories import Histories
from mtmh.data.validation import ValidationDataset
from mtmh.evaluation.als import Als
from mtmh.papers.sequence_model import Pieces, SequenceSettings
from mtmh.preranking.neighbours import engagement_matrix
from mtmh.training.early_stopping import read_validation_curve
from mtmh.training.newest import VALIDATION

K = CUTS[-1]
NEAR = 0.99  # of the best
_LOOK_SECONDS = 0.1


class Look(NamedTuple):
    """The recall of a model after some passes or steps, and the seconds that these took."""

    passes: float
    seconds: float
    recall: float


def main() -> None:
    """Parses the command line, trains all and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="whose dataset and content embeddings are made")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of the recipe"
    )
    parser.add_argument("--without-ours", action="store_true", help="train only the others")
    parser.add_argument("--iterations", type=int, nargs="+", default=[1, 2, 3, 5, 8, 15, 30], help="of ALS")
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 10, 20, 40, 80], help="of SASRec")
    parser.add_argument("--rectools", type=Path, help="the Python of an environment that has RecTools")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    made = load_config(arguments.recipe, arguments.overrides)
    inputs = [f"paths.dataset={made.dataset_dir}", f"paths.content={made.content_dir}"]
    overrides = [*arguments.overrides, *inputs, f"paths.root={out}"]
    config = load_config(arguments.recipe, overrides)
    view = ValidationDataset(open_dataset(config.dataset_dir), config.validation, config.seed)
    users = view.evaluation_users(config.validation.num_users, config.seed)
    reader = view.history_reader()
    histories = [reader.read(group) for group in range(reader.num_groups)]
    curves = {}
    if not arguments.without_ours:
        curves["ours"] = our_looks(arguments.recipe, overrides, config.model_dir("checkpoints"))
    curves["ALS"] = list(als_looks(histories, users, view.num_items, arguments.iterations, config.seed))
    if arguments.rectools:
        looks = sasrec_looks(histories, users, arguments.epochs, config, arguments.rectools, out)
        curves["RecTools' SASRec"] = list(looks)
    print(f"| | best recall@{K} | minutes to 0.99 of it | passes or steps then |\n|---|---:|---:|---:|")
    for name, looks_of_model in curves.items():
        best, reached = reached_best(looks_of_model)
        print(f"| {name} | {best:.4f} | {reached.seconds / 60:.2f} | {reached.passes:g} |")
    result = report_head(arguments) | {"users": len(users.user_index), "curves": curves}
    (out / "time-to-quality.json").write_text(json.dumps(result, indent=2))


def reached_best(looks: list[Look]) -> tuple[float, Look]:
    """The best recall, and the first look within a hundredth of it."""
    best = max(look.recall for look in looks)
    return best, next(look for look in looks if look.recall >= NEAR * best)


def recall(lists: npt.NDArray[np.int64], users: EvaluationUsers) -> float:
    """Mean recall of lists [Q, K] of items (-1: none), as training measures it: over what a user had not had before."""
    found = []
    for own, wanted, had in zip(lists, _lists(users.test), _lists(users.histories), strict=True):
        new = np.setdiff1d(wanted, had)
        if len(new):
            found.append(np.isin(new, own).mean())
    return float(np.mean(found))


def our_looks(recipe: str, overrides: list[str], checkpoints: Path) -> list[Look]:
    """The curve of ``mtmh train``, which is ended once it has found how long to train."""
    shutil.rmtree(checkpoints, ignore_errors=True)
    command = [sys.executable, "-m", "mtmh.cli", "train", recipe]
    for setting in overrides:
        command += ["--set", setting]
    seen: dict[int, Look] = {}
    checkpoints.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with (checkpoints.parent / "train.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as run:
        while run.poll() is None and not _is_final(checkpoints):
            for point in read_validation_curve(checkpoints / VALIDATION):
                seconds = time.perf_counter() - started
                seen.setdefault(point.step, Look(point.step, seconds, point.measured[f"recall@{K}"]))
            time.sleep(_LOOK_SECONDS)
        if run.returncode is None:
            run.terminate()
        elif run.returncode or not seen:
            raise SystemExit(f"mtmh train ended with {run.returncode}; its output is in {log.name}")
    return list(seen.values())


def als_looks(
    histories: list[Histories], users: EvaluationUsers, num_items: int, iterations: list[int], seed: int
) -> Iterator[Look]:
    """ALS of 128 factors, fitted with each number of iterations."""
    from scipy import sparse

    engaged = sparse.vstack([engagement_matrix(part, num_items) for part in histories], "csr")
    asked_with = engagement_matrix(users.histories, num_items)
    Als(engaged, seed, iterations=1)  # imports, threads
    for number in iterations:
        started = time.perf_counter()
        model = Als(engaged, seed, iterations=number)
        seconds = time.perf_counter() - started
        scores = model.score(asked_with)
        scores[asked_with.nonzero()] = -np.inf
        yield Look(number, seconds, recall(np.argsort(-scores, axis=1, kind="stable")[:, :K], users))


def sasrec_looks(
    histories: list[Histories], users: EvaluationUsers, epochs: list[int], config: Config, python: Path, out: Path
) -> Iterator[Look]:
    """RecTools' SASRec of 64 directions, trained with each number of epochs on the users with two events and more."""
    together = [items for part in histories for items in _lists(part)]
    known = np.array([user for user, items in enumerate(together) if len(items) > 1])
    chosen = [together[user] for user in known]
    rows, offsets = np.concatenate(chosen) + 1, np.cumsum([0, *map(len, chosen)])
    pieces = Pieces(rows.astype(np.int64), np.arange(len(rows)), offsets)
    place = np.searchsorted(known, users.user_index)
    there = known[np.minimum(place, len(known) - 1)] == users.user_index
    for number in epochs:
        settings = SequenceSettings("sasrec", 64, 256, config.seed, number, min_steps=0, max_length=LENGTH)
        found = their_lists(pieces, settings, python, out)
        lists = np.full((len(users.user_index), K), -1, np.int64)
        lists[there] = found[place[there]] - 1
        seconds = float((out / "sasrec-rectools.seconds").read_text())
        yield Look(number, seconds, recall(lists, users))


def _is_final(checkpoints: Path) -> bool:
    """True once the run on all of T1 has begun to write."""
    return any(path.name != VALIDATION for path in checkpoints.glob("*"))


def _lists(histories: Histories) -> Iterator[npt.NDArray[np.int64]]:
    for start, end in zip(histories.offsets[:-1], histories.offsets[1:], strict=True):
        yield histories.items[start:end].astype(np.int64)


if __name__ == "__main__":
    main()
