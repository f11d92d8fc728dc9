"""The verb that searches settings: mtmh tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtmh.cli.options import Overrides, Recipe, done, say


def tune(
    recipe: Recipe,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long to search; a later call goes on.")],
    out: Annotated[
        Path | None, typer.Option(help="The tuned recipe; default: beside the recipe, or here, as NAME-tuned.yaml.")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Ends the search after so many trials.")] = None,
    overrides: Overrides = None,
) -> None:
    """Searches better settings on the end of the training period; needs the dataset and content embeddings."""
    from mtmh.config import load_config
    from mtmh.tuning.study import PAGE, best_trial
    from mtmh.tuning.study import tune as run

    config = load_config(recipe, overrides)
    if out is None:
        folder = Path(recipe).parent if Path(recipe).is_file() else Path()
        out = folder / f"{Path(recipe).stem}-tuned.yaml"
    study = run(config, recipe, minutes, out, say, overrides=overrides, max_trials=trials)
    best = best_trial(study)
    say(f"best of {len(study.trials)} trials: {'the recipe as it is' if best.number == 0 else f'trial {best.number}'}")
    done("page", config.paths.root / config.name / "tuning" / PAGE)
    done("recipe", out)
