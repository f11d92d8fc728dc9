"""Embedding lookups beside the limits of the machine: ``python -m benchmarks.lookup --help``."""
