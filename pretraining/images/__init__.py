"""Images made from random formulas: one class is one random formula, one instance is one jitter of it."""
