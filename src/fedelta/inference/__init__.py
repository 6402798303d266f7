"""Adapters on disk, predictions and exports: the use of a finished run."""
