"""Local training: many clients in one forward and backward pass."""
