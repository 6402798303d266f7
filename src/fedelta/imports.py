"""Imports of large libraries in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses Python's search for reference cycles; for imports, which leave next to none.

    Importing torch and transformers makes a million objects. The search goes through all of them again each time that
    their number has grown by a quarter: a fifth of the time that the imports take.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            # There and back: the new objects count as old, so that the next short search passes them over.
            gc.freeze()
            gc.unfreeze()
        if was_enabled:
            gc.enable()
