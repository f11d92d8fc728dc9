"""Error messages about settings that do not fit: the place, the problem, and the name that may be meant."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError


def describe_problems(error: ValidationError, model: type[BaseModel], section: str = "") -> str:
    """One line for all problems of a refused tree of settings.

    Args:
        error: what validation against ``model`` raised.
        model: the settings class of the whole tree.
        section: dotted name of the place where the tree stands in a recipe, if it is not the whole of it.

    Returns:
        ``dotted.key: problem``, joined by semicolons. For an unknown key the problem names what may be meant.
    """
    problems: dict[str, list[str]] = {}
    for problem in error.errors():
        place = ".".join([section, *map(str, _setting(problem["loc"], model))]).strip(".") or "recipe"
        unknown = problem["type"] == "extra_forbidden"
        problems.setdefault(place, []).append(_unknown(problem["loc"], model) if unknown else problem["msg"])
    return "; ".join(f"{place}: {_either(said)}" for place, said in problems.items())


def _setting(location: tuple[str | int, ...], model: type[BaseModel]) -> list[str | int]:
    """The location without what pydantic adds of the kinds of value that a setting may have."""
    place: list[str | int] = []
    annotation: Any = model
    for part in location:
        kinds = _kinds(annotation)
        if len(kinds) > 1:
            break
        place.append(part)
        kind = kinds[0] if kinds else None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(part))
            annotation = field.annotation if field is not None else None
        else:  # an entry of a list or a mapping
            annotation = get_args(kind)[-1] if get_args(kind) else None
    return place


def _kinds(annotation: Any) -> list[Any]:
    """The kinds of value that an annotation allows, None apart."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for kind in get_args(annotation) if kind is not type(None)]
    return [annotation]


def _either(said: list[str]) -> str:
    """The problems of one setting as one: a value fits none of the kinds that it may be of."""
    first, *more = said
    return ", or ".join([first, *(text.removeprefix("Input should be ") for text in more)])


def others(name: str, known: list[str]) -> str:
    """The names that may stand in place of an unknown one: the nearest, then all."""
    close = get_close_matches(name, known, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"{meant}There are {', '.join(known)}" if known else "there is none like it"


def _unknown(location: tuple[str | int, ...], model: type[BaseModel]) -> str:
    *parents, key = location
    section = [model]
    for parent in parents:
        # The number of a list's entry or the key of a mapping is no field: the section stays.
        section = [
            below
            for above in section
            if parent in above.model_fields
            for below in _models(above.model_fields[str(parent)].annotation)
        ] or section
    names = sorted({name for above in section for name in above.model_fields})
    close = get_close_matches(str(key), names, n=1)
    elsewhere = [path for path in _paths(model) if path.rpartition(".")[2] == key]
    if close or elsewhere:
        return f"no such setting; did you mean {' or '.join([*close, *elsewhere])}?"
    return f"no such setting; here may stand {', '.join(names)}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _paths(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = f"{above}{name}"
        yield path
        for below in _models(field.annotation):
            yield from _paths(below, f"{path}.")
