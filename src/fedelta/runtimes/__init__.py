"""Settings of the simulation, and a runtime that loses clients."""
