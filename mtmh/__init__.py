"""MTMH: multi-task, multi-head item-to-item retrieval on TorchRec."""

__version__ = "0.1.0"
