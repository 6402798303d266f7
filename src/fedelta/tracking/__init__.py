"""Copies of a run's records in the tools that people compare runs with; nothing here contacts a network."""
