"""Retrieval: search under every head, prerank, merge by quota."""
