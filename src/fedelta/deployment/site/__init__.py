"""A site of deployments: what it is, how it is connected, and what it answers."""
