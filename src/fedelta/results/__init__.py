"""What a run leaves behind: the run directory, the ledger of bytes, checkpoints and the report."""
