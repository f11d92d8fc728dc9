"""Settings that a search may change, and where it looks for them."""

from __future__ import annotations

from typing import Any

import optuna

from mtmh.config import Config
from mtmh.config.recipe import put_setting

Settings = dict[str, Any]  # dotted key of the recipe -> value

# What a recipe has in the place of these is a choice as well, and tried first.
_RANGES = {
    "training.learning_rate": (0.05, 1.0),
    "training.dense_learning_rate": (0.003, 0.1),
    "loss.temperature": (0.03, 0.2),
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "loss.num_uniform_negatives": (256, 512, 1024, 2048, 4096),
    "pairs.window": (3, 5, 10, 20, 50),
    "pairs.direction": ("forward", "both"),
    "model.embedding_dim": (32, 64, 128),
    "model.head_dim": (64, 128, 256),
    "model.id_dropout": (0.0, 0.05, 0.1, 0.2),
}
_PROPENSITY = ("none", "trigger", "candidate", "both")


def draw(trial: optuna.Trial, config: Config) -> Settings:
    """Draws settings for a trial; those that decide how much the heads differ are left to the recipe.

    The weight of the relevance loss is not drawn: it trades recall for relevance, and the search sees recall alone.

    Args:
        trial: of the search.
        config: the recipe.

    Returns:
        the settings by dotted key.
    """
    own = own_settings(config)
    drawn: Settings = {}
    for key, (low, high) in _RANGES.items():
        drawn[key] = trial.suggest_float(key, min(low, own[key]), max(high, own[key]), log=True)
    for key, values in _CHOICES.items():
        drawn[key] = trial.suggest_categorical(key, values if own[key] in values else (own[key], *values))
    count_of = trial.suggest_categorical("loss.propensity", _PROPENSITY)
    propensity = config.loss.propensity
    kept = propensity.model_dump() if propensity else {}
    drawn["loss.propensity"] = None if count_of == "none" else kept | {"count_of": count_of}
    if config.model.needs_teacher:
        widths = sorted({0, 32, 64, 128, config.model.content_dim})
        drawn["model.content_dim"] = trial.suggest_categorical("model.content_dim", widths)
        kinds = sorted({"none", "content", config.pairs.sim.kind})
        kind = trial.suggest_categorical("pairs.sim", kinds)
        drawn["pairs.sim"] = config.pairs.sim.model_dump() if kind == config.pairs.sim.kind else {"kind": kind}
    return drawn


def own_settings(config: Config) -> dict[str, Any]:
    """The parameters under which `draw` gives what the recipe has."""
    tree = config.model_dump(mode="json")
    own = {key: at(tree, key) for key in (*_RANGES, *_CHOICES)}
    own["loss.propensity"] = config.loss.propensity.count_of if config.loss.propensity else "none"
    if config.model.needs_teacher:
        own |= {"model.content_dim": config.model.content_dim, "pairs.sim": config.pairs.sim.kind}
    return own


def at(tree: Settings, key: str) -> Any:
    """The value under a dotted key."""
    for part in key.split("."):
        tree = tree[part]
    return tree


def put(tree: Settings, settings: Settings) -> Settings:
    """The tree with values under dotted keys."""
    for key, value in settings.items():
        put_setting(tree, key, value)
    return tree
