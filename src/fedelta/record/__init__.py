"""The files of a run: run directory, records, ledger and checkpoints, and how they are read back."""
