"""Deployed federations: what runs on the server and at each site, and the commands for both."""
