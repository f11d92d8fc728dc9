"""MTMH: multi-task, multi-head item-to-item retrieval on TorchRec."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Types stand in __init__.pyi. A name is imported when it is used: `import mtmh` alone brings no other package.
_NAMES = {
    "Model": "mtmh.start.model",
    "Query": "mtmh.retrieval.query",
    "Retriever": "mtmh.retrieval.retriever",
    "fit": "mtmh.start.model",
    "load": "mtmh.start.model",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'mtmh' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
