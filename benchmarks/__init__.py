"""Measured figures: one question a file or folder, each prints a table and writes JSON."""
