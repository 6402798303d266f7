"""How tensors become bytes."""
