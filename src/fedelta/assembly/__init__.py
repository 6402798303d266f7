"""A configuration becomes objects, split by who needs them.

model.py makes what both sides have, site.py what stays where the data are, server.py what stays at the server, and
run.py puts all of it together in one process.
"""
