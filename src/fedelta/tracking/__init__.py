"""Copies the records of a run to experiment trackers; never contacts a network."""
