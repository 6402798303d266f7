"""Deployed federations, in three packages.

`server`   the program that runs all the time at the server: its folder, sites, deployments, and their commands
`run`      one deployed run at the server, from a configuration to a finished run directory
`site`     a site: its folder, its connection with the server, and the worker that answers messages

docs/architecture.md follows one round through them.
"""
