"""Grids of experiments: the request and its cells, the processes that run them, and the tables and page."""
