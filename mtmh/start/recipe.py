"""Writes a guessed recipe as YAML: short, in the order of the sections, with a comment where a choice was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from mtmh.config.recipe import put_setting
from mtmh.start.guess import Guess

_WIDE = 10_000  # characters; values are never folded


def recipe_text(guess: Guess, root: str, description: str, settings: Mapping[str, Any] | None = None) -> str:
    """The recipe as text.

    Args:
        guess: of the tables.
        root: folder of all artifacts.
        description: for people.
        settings: others of the recipe, by dotted key; they win.
    """
    tree: dict[str, Any] = {"name": "mtmh", "description": description, "paths": {"root": root}, **guess.tree}
    for key, value in (settings or {}).items():
        put_setting(tree, key, value)
    return "\n".join(_lines(tree, guess.comments)) + "\n"


def _lines(tree: Mapping[str, Any], comments: Mapping[str, str], above: str = "") -> Iterator[str]:
    indent = "  " * above.count(".")
    for key, value in tree.items():
        path = f"{above}{key}"
        if path in comments:
            yield f"{indent}# {comments[path]}"
        if isinstance(value, Mapping) and (path == "data" or any(other.startswith(f"{path}.") for other in comments)):
            yield f"{indent}{key}:"
            yield from _lines(value, comments, f"{path}.")
        else:
            flow = None if isinstance(value, Mapping | list) else False
            text = yaml.safe_dump(
                {key: value}, default_flow_style=flow, sort_keys=False, width=_WIDE, allow_unicode=True
            )
            yield from (f"{indent}{line}" for line in text.splitlines())
