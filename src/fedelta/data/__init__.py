"""Data sets: read, divided among clients, and served as model inputs by row."""
