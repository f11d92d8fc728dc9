"""The first hour on a GPU: what no CPU can show, checked and measured in one call."""
