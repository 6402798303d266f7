"""A setting of the C library that halves the time of a training step on Linux."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGE_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Makes glibc keep what tensors freed; does nothing elsewhere.

    By default every tensor above 32 MB or so is mapped afresh and given back, and the page faults of that cost as
    much as the arithmetic of a small network. It changes no result.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD):
        library.mallopt(option, LARGE_BYTES if option != M_TOP_PAD else LARGE_BYTES // 8)
