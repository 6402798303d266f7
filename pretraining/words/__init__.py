"""Pre-training of the bundled language model on texts of a small world."""
