"""One round: what a client does, the engine that trains many of them at once, and the loop around it."""
