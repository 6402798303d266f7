"""How the deltas of a round become one: one file per family of means."""
