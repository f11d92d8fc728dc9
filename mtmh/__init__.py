"""MTMH: multi-task, multi-head item-to-item retrieval on TorchRec."""

from mtmh.lazy import lazy_names

__version__ = "0.1.0"

# Types stand in __init__.pyi. A name is imported when it is used: `import mtmh` alone brings no other package.
_NAMES = {
    "Model": "mtmh.start.model",
    "Query": "mtmh.retrieval.query",
    "Retriever": "mtmh.retrieval.retriever",
    "fit": "mtmh.start.model",
    "load": "mtmh.start.model",
}

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
