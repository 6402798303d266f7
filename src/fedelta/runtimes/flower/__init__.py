"""Flower as the engine of a deployment; no other package imports `flwr`."""
