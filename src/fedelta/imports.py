"""Speeds up the import of large libraries."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Context manager that pauses Python's search for reference cycles, for imports, which make hardly any.

    Importing torch and transformers makes a million objects. The search goes through all of them again each time that
    their number has grown by a quarter: a fifth of the time that the imports take.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            # Freezing and unfreezing moves the new objects to the oldest generation, which short searches skip.
            gc.freeze()
            gc.unfreeze()
        if was_enabled:
            gc.enable()
