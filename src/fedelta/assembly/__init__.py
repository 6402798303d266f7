"""Builds objects from a configuration, in parts for the two sides of a federation.

model.py builds what both sides have, site.py what stays with the data, server.py what the server has, and run.py puts
all of it together in one process.
"""
