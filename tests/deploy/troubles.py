"""What goes wrong around a deployment and needs the machine's help: a cut network, a full disk, a wrong clock."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("clock.c")


@dataclass(frozen=True)
class Network:
    """Two network namespaces with one cable between them, and no way out of either.

    Args:
        server: name of the namespace of the server.
        site: name of the namespace of the site.
        address: of the server, as the site reaches it.
    """

    server: str
    site: str
    address: str = "10.213.77.1"

    @property
    def at_server(self) -> list[str]:
        """What a command begins with to run in the server's namespace."""
        return ["ip", "netns", "exec", self.server]

    @property
    def at_site(self) -> list[str]:
        """What a command begins with to run in the site's namespace."""
        return ["ip", "netns", "exec", self.site]

    def cut(self) -> None:
        """Pulls the cable: packets are lost, and nobody is told."""
        _ip("-n", self.server, "link", "set", "wire0", "down")

    def mend(self) -> None:
        """Puts it back."""
        _ip("-n", self.server, "link", "set", "wire0", "up")


@contextmanager
def network() -> Iterator[Network]:
    """Two namespaces, and the cable between them; both are gone afterwards."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the command `ip`")
    wire = Network(f"fedelta-server-{os.getpid()}", f"fedelta-site-{os.getpid()}")
    made = []
    try:
        for name in (wire.server, wire.site):
            made_it = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
            if made_it.returncode:
                pytest.skip(f"network namespaces cannot be made here: {made_it.stderr.strip()}")
            made.append(name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", wire.server, "link", "add", "wire0", "type", "veth", "peer", "name", "wire1", "netns", wire.site)
        for name, end, address in ((wire.server, "wire0", wire.address), (wire.site, "wire1", "10.213.77.2")):
            _ip("-n", name, "address", "add", f"{address}/30", "dev", end)
            _ip("-n", name, "link", "set", end, "up")
        yield wire
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False)


@contextmanager
def small_disk(folder: Path, size_mib: int) -> Iterator[None]:
    """A file system of `size_mib` at `folder`, which takes over what is there now."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("a small file system needs root and the command `mount`")
    saved = folder.with_name(f"{folder.name}.saved")
    folder.rename(saved)
    folder.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        shutil.copytree(saved, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all that is left of the file system of `folder`."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as stream:
        try:
            while stream.write(b"\0" * 4096):
                pass
        except OSError:
            pass
    return path


def wrong_clock(folder: Path, seconds: int) -> Mapping[str, str]:
    """The environment of a process whose clock is wrong by `seconds`; compiles a library into `folder`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a wrong clock needs a C compiler")
    library = folder / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(seconds)}


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
