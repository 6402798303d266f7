"""Local training of many clients in one forward and backward pass."""
