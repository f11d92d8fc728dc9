"""Descriptions of all settings, as docs/settings.md and ``mtmh show --explain`` tell them.

They stand once, where a setting is defined: a comment behind its field or above it, and the docstring of its section.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mtmh.config.base import Settings
from mtmh.config.recipe import Config

_FIELD = re.compile(r"    (\w+): ")
_COMMENT = re.compile(r"    # (.*)")
_BEHIND = re.compile(r"  # (?!type:|noqa)(.*?)(?:  # .*)?$")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: dotted; entries of a list or mapping are ``heads[]``.
        values: that it takes, in words; empty for a section.
        default: as in YAML; empty: there is none.
        text: of its own comment.
    """

    key: str
    values: str
    default: str
    text: str


@dataclass(frozen=True)
class Section:
    """A group of settings.

    Attributes:
        key: dotted; empty for the recipe as a whole.
        text: docstring.
        settings: that are no sections themselves.
    """

    key: str
    text: str
    settings: list[Setting]


def sections(model: type[BaseModel] = Config, above: str = "") -> Iterator[Section]:
    """All sections below a settings class, each before those in it."""
    comments = comments_of(model)
    plain, nested = [], []
    for name, field in model.model_fields.items():
        key = f"{above}{name}"
        below, many = _section_of(field.annotation)
        if below is None:
            plain.append(Setting(key, _values(field.annotation), _default(field), comments.get(name, "")))
        else:
            nested.append((below, f"{key}[]" if many else key))
            if many or not _is_plain(field):
                plain.append(Setting(key, "a list" if many else "a section", _default(field), comments.get(name, "")))
    yield Section(above.removesuffix("."), inspect.getdoc(model) or "", plain)
    for below, key in nested:
        yield from sections(below, f"{key}.")


def comments_of(model: type[BaseModel]) -> dict[str, str]:
    """Field -> its comment, those of inherited fields too."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, Settings) and base is not Settings:
            found |= _comments(inspect.getsource(base))
    return found


def _comments(source: str) -> dict[str, str]:
    found: dict[str, str] = {}
    above: list[str] = []
    field = ""
    for line in source.splitlines():
        if comment := _COMMENT.fullmatch(line):
            above.append(comment[1])
            continue
        if named := _FIELD.match(line):
            field = named[1]
            if above:
                found[field] = " ".join(above)
        above = []
        behind = _BEHIND.search(line)
        if behind and field:
            found[field] = behind[1]
        if re.match(r"    (def |@|\"\"\")", line):
            field = ""
    return found


def settings_page() -> str:
    """The text of docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Every setting of a recipe. `mtmh show RECIPE` prints them as a recipe has them, `--explain` adds these words;",
        "`--set KEY=VALUE` changes one. This page is made from `mtmh/config/`:",
        "`python -m mtmh.config.descriptions > docs/settings.md`.",
    ]
    for section in sections():
        lines += ["", f"## {section.key or 'The recipe'}", "", _markdown(section.text)]
        if section.settings:
            lines += ["", "| setting | values | default | |", "|---|---|---|---|"]
            for setting in section.settings:
                name = setting.key.rpartition(".")[2]
                default = f"`{setting.default}`" if setting.default else ""
                cells = [f"`{name}`", setting.values, default, _markdown(setting.text)]
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def explained(tree: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a recipe as YAML, each section and setting under its own words.

    Args:
        tree: all settings, JSON values.
    """
    words = {section.key: section.text.partition("\n\n")[0] for section in sections() if section.key}
    words |= {setting.key: setting.text for section in sections() for setting in section.settings if setting.text}
    yield from _explained(tree, words, "")


def _explained(tree: Mapping[str, Any], words: Mapping[str, str], above: str) -> Iterator[str]:
    indent = "  " * above.count(".")
    for name, value in tree.items():
        key = f"{above}{name}"
        for line in words.get(key, "").splitlines():
            yield f"{indent}# {line}"
        if isinstance(value, Mapping) and any(other.startswith(f"{key}.") for other in words):
            yield f"{indent}{name}:"
            yield from _explained(value, words, f"{key}.")
        else:
            dumped = yaml.safe_dump({name: value}, sort_keys=False)
            yield from (f"{indent}{line}" for line in dumped.splitlines())


def _markdown(text: str) -> str:
    return text.replace("``", "`")


def _section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The settings class in an annotation, and whether there may be several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    many = get_origin(annotation) in (list, dict)
    for part in get_args(annotation):
        below, several = _section_of(part)
        if below is not None:
            return below, many or several
    return None, False


def _is_plain(field: FieldInfo) -> bool:
    """True if a section is always there."""
    return isinstance(field.annotation, type)


def _values(annotation: Any) -> str:
    """The values that a setting takes, in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (list, dict):
        return ("list of " if origin is list else "mapping to ") + _values(parts[-1])
    if isinstance(annotation, type) and not parts:
        names = {"int": "integer", "float": "number", "str": "text", "bool": "true, false", "Path": "path"}
        names |= {"RemotePath": "URL", "LakeTable": "table of a lake"}
        return names.get(annotation.__name__, "" if annotation is type(None) else "any")
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _values(parts[0])
    return " or ".join(dict.fromkeys(filter(None, map(_values, parts)))) or "any"


def _default(field: FieldInfo) -> str:
    """As YAML has it, in one line."""
    if field.default is PydanticUndefined:
        return ""
    return _shown(field.default)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, BaseModel):
        pairs = value.model_dump(exclude_defaults=True)
        return "{" + ", ".join(f"{name}: {_shown(inner)}" for name, inner in pairs.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return str(value)


if __name__ == "__main__":
    print(settings_page(), end="")
