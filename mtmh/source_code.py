"""A digest of the code that a stage can reach by imports, written into the manifest of its artifact.

It tells whether an artifact would be made anew by the same code. Code counts as Python reads it: comments, docstrings
and line breaks do not. Another minor version of Python may write the same code otherwise.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# They may lie elsewhere than the package's folder, as in a checkout.
_PACKAGES = ("mtmh", "mtmh.modules", "mtmh.torchx_apps")
_ROOT = "mtmh"  # its own file holds the version and the Python interface, which decide nothing below them


@cache
def code_digest(*entries: str) -> str:
    """SHA-256 over the code that some modules of mtmh can reach, the same in a checkout and installed.

    Args:
        entries: full names of modules.
    """
    return digest_of(_modules(), *entries)


def reached_modules(modules: Mapping[str, Path], *entries: str) -> set[str]:
    """Names of the modules that some can reach, those among them; imports inside functions count.

    Args:
        modules: the files of all, by full name.
        entries: to start from.
    """
    found: set[str] = set()
    todo = list(entries)
    while todo:
        name = todo.pop()
        if name not in found and name != _ROOT:
            found.add(name)
            todo += _imported(modules, name)
    return found


def digest_of(modules: Mapping[str, Path], *entries: str) -> str:
    """As `code_digest`, of any modules by full name."""
    digest = hashlib.sha256()
    for name in sorted(reached_modules(modules, *entries)):
        code = _code(modules[name])
        digest.update(f"{name}\0{len(code)}\n".encode() + code)
    return digest.hexdigest()


def _imported(modules: Mapping[str, Path], name: str) -> Iterator[str]:
    """The modules whose names or contents a module imports; a package whose submodule is imported is not read."""
    path = modules[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _statements(_parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (above, node.module)))
            for alias in node.names:
                yield from (found for found in (f"{source}.{alias.name}", source) if found in modules)


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


@cache
def _code(path: Path) -> bytes:
    """The code without docstrings, which the parsed file loses."""
    tree = _parsed(path)
    for node in [tree, *_statements(tree)]:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            del node.body[0]
    return ast.unparse(tree).encode()


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """All statements below a node, and no expressions, of which there are many more."""
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, part, ()):
            if isinstance(child, ast.stmt):
                yield child
            yield from _statements(child)


@cache
def _modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for package in _PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            for path in Path(folder).rglob("*.py"):
                parts = [package, *path.relative_to(folder).with_suffix("").parts]
                found.setdefault(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path)
    return found
