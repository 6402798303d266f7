"""The server of deployments: its folder, its programs, its sites, and what is submitted to it."""
