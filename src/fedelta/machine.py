"""What this process may use of its machine: cores and memory, within the limits of its container."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import uuid
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
# Of glibc's `mallopt`: how much free memory at the end of the heap, and how large a block, goes back to the system.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def available_cores() -> int:
    """The number of cores, at least 1; a fraction of a core counts as one."""
    bounds = (_in_affinity(), _in_quota())
    return max(1, min(bound for bound in bounds if bound is not None))


def is_limited() -> bool:
    """Whether a quota leaves this process fewer cores than it sees."""
    return available_cores() < _in_affinity()


@functools.cache
def machine_id() -> str:
    """Eight hexadecimal digits for this machine since it was started; containers with names of their own differ."""
    try:
        boot = _BOOT.read_text(encoding="ascii")
    except OSError:  # no Linux
        boot = str(uuid.getnode())
    return hashlib.sha256(f"{platform.node()} {boot}".encode()).hexdigest()[:8]


def available_bytes() -> int | None:
    """Memory that processes can take without swapping, within the container's limit; None if unknown."""
    return min((bound for bound in (_in_system(), _in_container()) if bound is not None), default=None)


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM at the moment; None if unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # no Linux
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def keep_freed_memory() -> None:
    """Has memory that is freed stay with this process, for what it allocates next; only glibc can be told so.

    A training step allocates what the one before has freed. To get these pages from the system again took up to 6% of
    the time of a ViT's steps. Blocks of more than 32 MiB, which would leave large holes, still go back to the system.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_MMAP_THRESHOLD, 2**25)


def _in_affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_quota() -> int | None:
    """The quota of control groups, version 2 or else 1; None without one."""
    try:
        quota, period = _quota_and_period()
        return None if quota in ("max", "-1") else math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_and_period() -> tuple[str, str]:
    """CPU microseconds, over all cores, that may be used in a period, and the period in microseconds."""
    if (limit := _CGROUP / "cpu.max").exists():
        quota, period = limit.read_text(encoding="ascii").split()
        return quota, period
    quota, period = (
        (_CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip() for name in ("quota", "period")
    )
    return quota, period


def _in_system() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:  # no Linux
        return None
    fields = dict(line.split(":", maxsplit=1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _in_container() -> int | None:
    """Bytes left in the limit of control groups, version 2; None without a limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        cached = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    # The kernel frees cached pages of files on demand.
    return None if limit == "max" else int(limit) - used + int(cached.get("inactive_file", 0))
