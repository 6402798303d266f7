"""Aggregations, which combine the deltas of a round: one file per family of means."""
