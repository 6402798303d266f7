"""The number of cores that this process may use, by its CPU affinity and the quota of its container."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """The number of cores, at least 1; a fraction of a core counts as one."""
    bounds = (_in_affinity(), _in_quota())
    return max(1, min(bound for bound in bounds if bound is not None))


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
