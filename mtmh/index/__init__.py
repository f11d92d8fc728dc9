"""Item embeddings per head and the indexes over them."""
