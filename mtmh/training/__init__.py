"""Training: the sharded model, the loop, checkpoints and metrics."""
