"""The tables and figures of the papers, measured anew on any data set: ``mtmh reproduce``."""
