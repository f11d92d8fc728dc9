"""The learned preranker: its examples, training, artifact, and how good its tasks are on T2."""
