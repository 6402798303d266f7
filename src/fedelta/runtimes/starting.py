"""Starts worker processes: copies of this one where that is safe, else new ones that build their site themselves."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.reduction import DupFd
from socket import AF_UNIX, SOCK_STREAM, socket
from typing import Any  # DupFd has no type

from fedelta.federation.client import Site
from fedelta.privacy.local import SitePrivacy
from fedelta.runtimes.pool import Process, Start
from fedelta.runtimes.worker import work

Build = Callable[[int], Site]
"""Builds the site of the worker with this number, in a new process; a function of a module, or a `partial` of one."""


def can_start() -> bool:
    """Whether this process may have worker processes; the workers of other pools may not."""
    return not multiprocessing.current_process().daemon


def can_copy(device: str) -> bool:
    """Whether a copy of this process can train: on Linux, and without a GPU, which a copy cannot use."""
    import torch

    return sys.platform == "linux" and device == "cpu" and not torch.cuda.is_available()


def copies(site: Site) -> Start:
    """Starts copies of this process, which share the memory of model, data and cached features with it."""
    site.engine.share(site.test)
    context = multiprocessing.get_context("fork")

    def start(number: int, line: socket, inherited: Sequence[socket]) -> Process:
        process = context.Process(
            target=_copied, args=(site, line, inherited, os.getpid()), daemon=True, name=f"fedelta-worker-{number}"
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of threads that a copy lacks; a worker starts its own (worker.py).
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        return process

    return start


def new_processes(build: Build, site: Site) -> Start:
    """Starts new processes, which read model and data themselves: for GPUs, of which each gets one, and macOS.

    The noise of private updates is that of `site`: its key is in no configuration.
    """
    context = multiprocessing.get_context("spawn")

    def start(number: int, line: socket, _inherited: Sequence[socket]) -> Process:
        process = context.Process(
            target=_built,
            args=(partial(_site_of, build, number, site.privacy), _Passed(line), os.getpid()),
            daemon=True,
            name=f"fedelta-worker-{number}",
        )
        process.start()
        return process

    return start


def _copied(site: Site, line: socket, inherited: Sequence[socket], parent: int) -> None:
    for other in inherited:
        other.close()
    work(line, lambda: site, parent)


def _built(make: Callable[[], Site], line: socket, parent: int) -> None:
    work(line, make, parent)


def _site_of(build: Build, number: int, privacy: SitePrivacy | None) -> Site:
    return replace(build(number), privacy=privacy)


class _Passed:
    """A socket that becomes the same connection in a new process."""

    def __init__(self, line: socket) -> None:
        self._line = line

    def __reduce__(self) -> tuple[Callable[[Any], socket], tuple[Any]]:
        return _opened, (DupFd(self._line.fileno()),)


def _opened(descriptor: Any) -> socket:
    return socket(AF_UNIX, SOCK_STREAM, fileno=descriptor.detach())
