"""From raw logs to training batches: sources, prepare, the dataset artifact, pairs, negatives, the loader."""
