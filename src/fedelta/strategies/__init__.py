"""How deltas are combined and what travels: one file per strategy."""
