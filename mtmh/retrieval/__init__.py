"""The retriever as a plain Python object: search under every head, rank, merge by quota, answer."""
