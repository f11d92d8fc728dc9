"""Reading back the settings that an artifact was made with, perhaps by another version of mtmh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mtmh.artifacts import Artifact
from mtmh.config.messages import describe_problems
from mtmh.config.recipe import Config

S = TypeVar("S", bound=BaseModel)

_ALWAYS = tuple(name for name, field in Config.model_fields.items() if field.is_required())


def recorded_section(artifact: Artifact, section: str, settings: type[S]) -> S:
    """One section of the recipe that an artifact was made with; the others may be unreadable by now.

    Args:
        artifact: its manifest holds the recipe.
        section: dotted name.
        settings: class of the section.

    Raises:
        ValueError: it holds a setting that this mtmh does not know; the message names the artifact and the setting.
    """
    tree: Any = artifact.manifest.config
    for part in section.split("."):
        tree = tree.get(part, {})
    return _validated(artifact, tree, settings, section)


def recorded_config(artifact: Artifact, *sections: str) -> Config:
    """The recipe that an artifact was made with, as far as the caller reads it.

    A setting comes and goes with the stage that reads it: what is not asked for must not keep an artifact from being
    read.

    Args:
        artifact: its manifest holds the recipe.
        sections: that the caller reads, besides ``name``, ``paths`` and ``data``; all others are at their defaults.

    Raises:
        ValueError: as `recorded_section`.
    """
    return _validated(artifact, part_of_recipe(artifact.manifest.config, *sections), Config)


def part_of_recipe(tree: Mapping[str, Any], *sections: str) -> dict[str, Any]:
    """Sections of a recorded recipe, and those without which none is valid."""
    return {name: value for name, value in tree.items() if name in (*_ALWAYS, *sections)}


def _validated(artifact: Artifact, tree: Mapping[str, Any], settings: type[S], section: str = "") -> S:
    try:
        return settings.model_validate(tree)
    except ValidationError as error:
        raise ValueError(
            f"{artifact.path}: made with settings that this mtmh does not read: "
            f"{describe_problems(error, settings, section)}; use the mtmh that made it "
            f"({artifact.manifest.mtmh_version}), or make it anew"
        ) from None
