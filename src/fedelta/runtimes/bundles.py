"""Divides the packs of a round into bundles: what a worker process gets at a time.

Crossing to a worker costs a fraction of a millisecond, as much as a small client trains. So small packs go together,
fewer and fewer of them, so that all workers end at about the same time. A bundle changes no bit: its packs are trained
one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedelta.federation.packs import Pack

# Our choices. A worker that is slower than the others then has at most a quarter of its share of the rest too much.
_BUNDLES_PER_WORKER = 4
_MOST_BYTES = 2**20  # of the downloads of a bundle, as a measure of the answers that are in memory together


def bundled(packs: Sequence[Pack], work_of: Callable[[int], float], num_workers: int) -> list[list[Pack]]:
    """The bundles, in the order of `packs`.

    Args:
        packs: in the order in which they are handed out.
        work_of: client id to its work.
        num_workers: among which they are divided.
    """
    work = [sum(map(work_of, pack.payloads)) for pack in packs]
    num_bytes = [sum(map(len, pack.payloads.values())) for pack in packs]
    bundles: list[list[Pack]] = []
    left, room, bytes_left = sum(work), 0.0, 0
    for pack, pack_work, pack_bytes in zip(packs, work, num_bytes, strict=True):
        if not bundles or pack_work > room or pack_bytes > bytes_left:
            bundles.append([])
            room, bytes_left = left / (num_workers * _BUNDLES_PER_WORKER), _MOST_BYTES
        bundles[-1].append(pack)
        left, room, bytes_left = left - pack_work, room - pack_work, bytes_left - pack_bytes
    return bundles
