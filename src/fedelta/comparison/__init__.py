"""Grids of experiments: what is asked (request, cells), how it is run (pool), and what comes out (page)."""
