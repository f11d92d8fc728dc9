"""Reading back the settings that an artifact was made with, perhaps by another version of mtmh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mtmh.artifacts import Artifact
from mtmh.config.base import Decided, decisive
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
    wanted = {*_ALWAYS, *sections}
    tree = {name: value for name, value in artifact.manifest.config.items() if name in wanted}
    return _validated(artifact, tree, Config)


def recorded_decisive(artifact: Artifact, kind: Decided) -> dict[str, Any]:
    """The settings that decided what is in an artifact, by dotted key.

    Settings that came in since then have the values that stand for what was done before. If one has gone since, all are
    as they were recorded.
    """
    sections = {key.partition(".")[0] for key in artifact.manifest.decisive}
    try:
        return decisive(recorded_config(artifact, *sections), kind)
    except ValueError:
        return artifact.manifest.decisive


def _validated(artifact: Artifact, tree: Mapping[str, Any], settings: type[S], section: str = "") -> S:
    try:
        return settings.model_validate(tree)
    except ValidationError as error:
        raise ValueError(
            f"{artifact.path}: made with settings that this mtmh does not read: "
            f"{describe_problems(error, settings, section)}; use the mtmh that made it "
            f"({artifact.manifest.mtmh_version}), or make it anew"
        ) from None
