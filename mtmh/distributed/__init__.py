"""Ranks and what they share: rendezvous, sharding, communication, optimizers, state files."""
