"""The environment of a run: versions, machine, source revision, memory."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from fedelta.record.files import Record

if TYPE_CHECKING:
    import torch

# Packages that can change a result or are needed to repeat it.
PACKAGES = (
    "fedelta",
    "torch",
    "transformers",
    "peft",
    "datasets",
    "flwr-datasets",
    "flwr",
    "safetensors",
    "dp-accounting",
    "huggingface_hub",
    "numpy",
    "scikit-learn",
    "pillow",
)


def environment(plugins: Sequence[Record] = ()) -> Record:
    """The content of `environment.json`; unknown values are None, unknown packages are left out.

    Args:
        plugins: those that the run uses (`plugins.used_by`).
    """
    import torch

    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": _usable_cpus(),
        "num_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "git_commit": git_commit(),
        "plugins": list(plugins),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def machine(device: torch.device) -> dict[str, str | int | None]:
    """A description of everything that times on `device` depend on; times can be compared if it is equal."""
    import torch

    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cpu_count": _usable_cpus(),
        "num_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
    }


def git_commit() -> str | None:
    """Commit of the work tree around the current directory, with `-dirty` if it has changes; None outside of one."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def peak_memory_bytes() -> int:
    """Highest resident memory of this process so far; 0 if the system does not report it."""
    # On Linux `ru_maxrss` of a process that another one started begins with the peak of that one.
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    """The name of the processor, on Linux from /proc/cpuinfo, because Python only gives the architecture there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _usable_cpus() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
