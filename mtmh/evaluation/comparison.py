"""Several models beside each other: one picture, one table, and what differs in how they were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtmh.artifacts import open_artifact
from mtmh.config import load_config
from mtmh.config.base import leaves
from mtmh.evaluation.compare import difference, differing, load_comparable
from mtmh.evaluation.report import PERCENT, differences_part, explanations
from mtmh.evaluation.report_parts import curve_part, figures_table, origin_facts, setting, training_part
from mtmh.evaluation.results import USERS, Difference, Evaluation, load_evaluation
from mtmh.evaluation.tables import columns, figures, percent
from mtmh.evaluation.user_values import UserValues
from mtmh.pages.page import callout, cell, note, page, row, section, table


def evaluation_folder(model: str) -> Path:
    """The evaluation of a model that is named by its folder, or by the recipe that it was made by."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    return load_config(model).model_dir("evaluation")


@dataclass(frozen=True)
class Comparison:
    """Evaluations of two models or more, on one dataset and by one protocol.

    Attributes:
        evaluations: in the order given, each under a name of its own.
        recipes: that they were made by.
        differences: the first model minus each other that shares users with it.
        ahead: cut-off -> the name of the model of most recall, the runner-up, and the first minus the second.
    """

    evaluations: list[Evaluation]
    recipes: list[dict[str, Any]]
    differences: dict[str, Difference]
    ahead: dict[int, tuple[str, str, Difference | None]]

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Comparison:
        """Opens evaluation artifacts.

        Raises:
            ValueError: fewer than two, one is missing, or they are of different data or protocols.
        """
        if len(folders) < 2:
            raise ValueError("a comparison takes two models or more")
        first = load_evaluation(folders[0])
        loaded = [first, *(load_comparable(folder, first) for folder in folders[1:])]
        names = [found.model for found in loaded]
        unique = [
            name if names.count(name) == 1 else f"{name} ({folder})"
            for name, folder in zip(names, folders, strict=True)
        ]
        evaluations = [_renamed(found, name) for found, name in zip(loaded, unique, strict=True)]
        recipes = [open_artifact(folder, "evaluation").manifest.config for folder in folders]
        users = [UserValues.read(folder / USERS) for folder in folders]

        def between(left: int, right: int) -> Difference | None:
            steps = evaluations[left].steps, evaluations[right].steps
            settings = recipes[left], recipes[right]
            return difference(users[left], users[right], first.seed, steps, settings)

        beside = {unique[place]: between(0, place) for place in range(1, len(folders))}
        ahead = {}
        for k in first.protocol.recall_at:
            best, second = sorted(
                range(len(folders)), key=lambda place: evaluations[place].merged.recall[k].value, reverse=True
            )[:2]
            ahead[k] = unique[best], unique[second], between(best, second)
        return cls(evaluations, recipes, {name: found for name, found in beside.items() if found is not None}, ahead)

    def verdict(self) -> list[str]:
        """Sentences: who is ahead, then each cut-off, then topic match."""
        gaps = {k: found.recall[k] for k, (_, _, found) in self.ahead.items() if found is not None}
        reliable = {k: name for k, (name, _, _) in self.ahead.items() if k in gaps and gaps[k].low > 0}
        parts = [
            f"{name} is ahead at {', '.join(f'recall@{k}' for k, best in reliable.items() if best == name)}"
            for name in dict.fromkeys(reliable.values())
        ]
        if len(reliable) == len(self.ahead) and len(parts) == 1:
            parts = [f"{next(iter(reliable.values()))} is ahead at every cut-off"]
        level = [f"recall@{k}" for k in self.ahead if k not in reliable]
        if level:
            parts.append(f"the best two are level at {', '.join(level) if reliable else 'every cut-off'}")
        lines = [f"{'; '.join(parts)}."]
        by_name = {found.model: found for found in self.evaluations}
        for k, (best, second, _) in self.ahead.items():
            recalls = [f"{name} {percent(by_name[name].merged.recall[k])} %" for name in (best, second)]
            line = f"recall@{k}: {', then '.join(recalls)}"
            if k in gaps:
                line += (
                    f"; 95 % interval of the difference {100 * gaps[k].low:+.2f} to {100 * gaps[k].high:+.2f} points"
                )
            lines.append(line)
        matches = [(found.merged.match_l2.value, found.model) for found in self.evaluations if found.merged.match_l2]
        if matches:
            lines.append(f"most on topic: {max(matches)[1]}, L2 match {100 * max(matches)[0]:.2f} %")
        return lines

    def page(self) -> str:
        """The comparison as one HTML file that needs nothing else."""
        first = self.evaluations[0]
        recall_at = first.protocol.recall_at
        headline, *lines = self.verdict()
        return page(
            " · ".join(found.model for found in self.evaluations),
            callout(headline, lines),
            section("Recall and relevance", curve_part(self.evaluations)),
            section("Results", note(PERCENT), self._results()),
            section(f"{first.model} minus the others", differences_part(first.model, recall_at, self.differences)),
            section("What differs in their recipes", self._settings()),
            training_part(self.evaluations),
            section("Where they come from", self._origins()),
            explanations(first),
            subtitle=f"{len(self.evaluations)} models on {first.dataset}: {first.num_users:,} users,"
            f" {first.num_items:,} items in the catalogue.",
        )

    def _results(self) -> str:
        """Merged answers and heads of each model, then the yardsticks, which are those of the data."""
        first = self.evaluations[0]
        groups = [found.of_kind("merged", "head") for found in self.evaluations] + [first.of_kind("yardstick")]
        named = [[(found.name, found, figures(found)) for found in group] for group in groups]
        return figures_table(columns(first.protocol.recall_at), named)

    def _settings(self) -> str:
        keys = dict.fromkeys(key for recipe in self.recipes[1:] for key in differing(self.recipes[0], recipe))
        steps = [found.steps for found in self.evaluations]
        if not keys and len(set(steps)) == 1:
            return note("Settings and steps of training are the same.")
        values = [dict(leaves(recipe)) for recipe in self.recipes]
        rows = [row([cell("steps of training"), *(cell(setting(count)) for count in steps)])]
        rows += [row([cell(key), *(cell(setting(found.get(key))) for found in values)]) for key in keys]
        return table(["", *(found.model for found in self.evaluations)], rows, "short")

    def _origins(self) -> str:
        origins = [origin_facts(found.origin) for found in self.evaluations]
        names = dict.fromkeys(name for origin in origins for name in origin)
        rows = [row([cell(name), *(cell(origin.get(name, "–")) for origin in origins)]) for name in names]
        return table(["", *(found.model for found in self.evaluations)], rows, "short")


def _renamed(evaluation: Evaluation, name: str) -> Evaluation:
    """The evaluation under another name of its model."""
    rows = [
        found.model_copy(update={"name": name + found.name.removeprefix(evaluation.model)})
        if found.kind != "yardstick" and found.name.startswith(evaluation.model)
        else found
        for found in evaluation.rows
    ]
    return evaluation.model_copy(update={"model": name, "rows": rows})
