"""The short way: two tables in, a recipe guessed, every stage run, a model to ask; in Python and for ``mtmh init``."""
