"""Decides how many cells fit into memory at the same time.

A cell counts as much as the largest one seen so far, finished or running, and a tenth more: cells of one grid differ
(full fine-tuning beside a head), and the largest may be the next. Before any has run, a cell counts as 4 GiB. Memory
that running cells have not taken yet is reserved for them.
"""

from __future__ import annotations

from collections.abc import Sequence

# Our largest recipe, full fine-tuning of a ViT-B/16 on CIFAR-100, takes 3 to 4 GiB with its images.
UNSEEN_BYTES = 4 * 2**30
_MARGIN = 1.1


def fits(available_bytes: int | None, running_peaks: Sequence[int], highest_peak: int) -> bool:
    """Whether one more cell fits.

    Args:
        available_bytes: free memory; None if unknown, and then any cell fits.
        running_peaks: bytes that each running cell has taken so far; 0 if unknown.
        highest_peak: bytes that the largest cell took, finished or running; 0 if unknown.

    >>> fits(10 * 2**30, [], 0), fits(7 * 2**30, [0], 0), fits(7 * 2**30, [2**30], 2**30)
    (True, False, True)
    """
    if available_bytes is None:
        return True
    need = highest_peak * _MARGIN if highest_peak else UNSEEN_BYTES
    reserved = sum(max(0.0, need - peak) for peak in running_peaks)
    return available_bytes - reserved >= need
