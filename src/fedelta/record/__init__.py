"""What a run leaves behind: the run directory, its records and ledger of bytes, checkpoints, and the way back."""
