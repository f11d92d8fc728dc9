"""The base class and the value types that all sections of the settings share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from mtmh.artifacts import Kind

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0.0)]


class Settings(BaseModel):
    """Base of every section: immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RunLength(Settings):
    """The length of a training: to the end of its epochs, or ``max_steps`` if that is sooner."""

    epochs: Positive = 1
    max_steps: Positive | None = None

    def num_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


def leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, by dotted key; an empty mapping is a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


# Kinds of artifacts, and the checkpoints of the preranker apart from those of the item tower.
Decided: TypeAlias = Kind | Literal["preranker-checkpoint"]


@dataclass(frozen=True, init=False)
class Decides:
    """Mark of a setting: the kinds of artifacts whose content it decides, and so their identity.

    It stands in the annotation of a field, ``Annotated[int, Decides("dataset")]``. The mark of a section is that of all
    settings in it, but for those that have one of their own. ``Decides()``, or no mark at all on the way: nothing
    depends on the setting but speed, place or logs.
    """

    kinds: tuple[Decided, ...]

    def __init__(self, *kinds: Decided) -> None:
        object.__setattr__(self, "kinds", kinds)


def decisive(settings: BaseModel, kind: Decided) -> dict[str, Any]:
    """The settings that decide what is in an artifact, by dotted key.

    Args:
        settings: the whole recipe, or a section that has marks of its own.
        kind: of the artifact.

    Returns:
        JSON values; a mapping's entries count as settings.

    Example:
        >>> class Small(Settings):
        ...     seed: Annotated[int, Decides("dataset")] = 3
        ...     threads: int = 2
        >>> decisive(Small(), "dataset")
        {'seed': 3}
    """
    return dict(leaves(_decisive(settings, settings.model_dump(mode="json"), kind, False)))


def _decisive(settings: BaseModel, tree: Mapping[str, Any], kind: Decided, inherited: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        marks = [mark for mark in field.metadata if isinstance(mark, Decides)]
        decides = kind in marks[-1].kinds if marks else inherited
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            if below := _decisive(value, tree[name], kind, decides):
                found[name] = below
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            parts = [_decisive(part, tree[name][i], kind, decides) for i, part in enumerate(value)]
            if any(parts):
                found[name] = parts
        elif decides:
            found[name] = tree[name]
    return found
