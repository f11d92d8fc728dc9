"""Adapters: each turns one kind of raw input into the two tables of the contract, events and items."""
