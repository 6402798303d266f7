"""The command line. Results go to standard output, progress and errors to standard error.

Exit codes: 0 done; 1 training failed; 2 something given cannot be used; 130 stopped by Ctrl-C.
"""

from fedelta.cli.entry import app, main

__all__ = ["app", "main"]
