"""Where clients run: in this process (simulation.py)."""
