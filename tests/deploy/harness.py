"""A deployed federation of real processes on one machine, started with the commands that people type."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tomli_w
from safetensors.torch import load_file
from tests.deploy.processes import Program, Programs, fedelta, free_port, until

# Words in the command lines of a federation's processes, by what they are.
SUPERLINK, SUPEREXEC, SERVER_APP = "flower-superlink", "flower-superexec", "flwr-serverapp"
PROXY, WORKER = "fedelta.deployment.server.proxy", "fedelta.deployment.site.worker"


@dataclass
class SiteFolder:
    """A site: its folder, and its program while it runs.

    Args:
        name: of the site.
        path: of its folder.
        programs: that start it.
        env: added to its environment.
        prefix: put before its command.
    """

    name: str
    path: Path
    programs: Programs
    env: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    program: Program | None = None
    begin: int = 0  # of what its log says about the present run

    @property
    def public_key(self) -> Path:
        """What the server's operator gets."""
        return self.path / f"{self.name}.pub"

    def change(self, settings: Mapping[str, Any]) -> None:
        """Replaces keys and sections of its settings."""
        file = self.path / "site.toml"
        file.write_text(tomli_w.dumps({**tomllib.loads(file.read_text()), **settings}))

    @property
    def is_running(self) -> bool:
        """Whether its program runs."""
        return self.program is not None and self.program.is_running

    @property
    def said(self) -> str:
        """What `fedelta site run` has printed since the last deployment began."""
        return "" if self.program is None else self.program.log.read_bytes()[self.begin :].decode(errors="replace")

    @property
    def log(self) -> str:
        """All that `fedelta site run` has printed, however often it was started."""
        return "" if self.program is None else self.program.log.read_bytes().decode(errors="replace")

    @property
    def workers(self) -> list[psutil.Process]:
        """The processes that keep its model and data."""
        return [] if self.program is None else self.program.part(WORKER)

    def run(self, *deed: str, hostile: bool = False) -> Program:
        """Starts `fedelta site run`, or a site that means it ill (hostile.py)."""
        command = fedelta("site", "run", self.path)
        if hostile:
            command = [sys.executable, "-m", "tests.deploy.hostile", str(self.path), *deed]
        self.program = self.programs.start(f"site-{self.name}", command, self.env, self.prefix)
        return self.program

    def wait_until_joined(self, seconds: float = 60) -> None:
        """Waits until the server has accepted the site."""
        assert self.program is not None
        self.program.wait_for("joined; waiting", seconds)

    def wait_for_training(self, after: int, seconds: float = 90) -> int:
        """Waits until it begins its part of a round, and returns the number of the round."""
        begins = re.compile(r"round (\d+): \d+ clients? to train\n")
        until(lambda: begins.search(self.said[after:]), seconds, f"site {self.name} trains:\n{self.said}", every=0.02)
        return int(begins.findall(self.said[after:])[-1])

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Waits until it has said something since the last deployment began."""
        assert self.program is not None
        self.program.wait_for(text, seconds, self.begin)

    def kill(self, *words: str) -> int:
        """Kills -9 those of its processes whose command has one of `words`, or all of them; returns how many."""
        assert self.program is not None
        return self.program.kill(*words)


@dataclass
class Federation:
    """A server and its sites.

    Args:
        folder: new; holds the server's folder, those of the sites, and logs.
        host: address at which sites reach the server.
        at_server: put before the commands on the server's machine.
    """

    folder: Path
    host: str = "127.0.0.1"
    at_server: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    sites: dict[str, SiteFolder] = field(default_factory=dict)
    server: Program | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.programs = Programs(self.folder)
        self.hub = self.folder / "hub"

    def __enter__(self) -> Federation:
        return self

    def __exit__(self, *_: object) -> None:
        self.programs.end()

    def command(self, name: str, *arguments: str | Path, seconds: float = 60) -> str:
        """Runs `fedelta ARGUMENTS` on the server's machine; fails unless it succeeds. Returns what it printed."""
        program = self.programs.start(name, fedelta(*arguments), prefix=self.at_server)
        status = program.wait(seconds)
        assert status == 0, f"fedelta {arguments} ended with {status}:\n{program.text[-3000:]}"
        return program.text

    def start_server(self) -> Program:
        """`fedelta server init`, the first time, and `fedelta server run`; returns when it is up."""
        if not self.hub.exists():
            self.command("server-init", "server", "init", self.hub, "--host", self.host, "--port", str(self.port))
        self.server = self.programs.start("server", fedelta("server", "run", self.hub), prefix=self.at_server)
        self.server.wait_for("sites can connect", 60)
        return self.server

    def add_site(self, name: str, settings: Mapping[str, Any], **options: Any) -> SiteFolder:
        """`fedelta site init`, with `settings` instead of those of its file; its key is not registered yet."""
        path, authority = self.folder / name, self.hub / "tls" / "ca.crt"
        address = f"{self.host}:{self.port}"
        arguments = ("site", "init", path, "--name", name, "--server", address, "--ca", authority)
        self.command(f"init-{name}", *arguments)
        site = SiteFolder(name, path, self.programs, **options)
        site.change(settings)
        self.sites[name] = site
        return site

    def register(self, *names: str) -> None:
        """Gives the keys of these sites to the server."""
        for name in names:
            key = self.sites[name].public_key
            (self.hub / "sites" / key.name).write_bytes(key.read_bytes())

    def remove_site(self, name: str) -> None:
        """Ends a site, and its access."""
        site = self.sites.pop(name)
        (self.hub / "sites" / site.public_key.name).unlink(missing_ok=True)
        if site.program is not None:
            site.program.end()
        shutil.rmtree(site.path)

    def recover(self, names: Collection[str]) -> None:
        """Starts the server and these sites again where they have ended, and removes all other sites."""
        if self.server is None or not self.server.is_running:
            self.start_server()
        for name in list(self.sites):
            if name not in names:
                self.remove_site(name)
            elif not self.sites[name].is_running:
                self.sites[name].run()
                self.sites[name].wait_until_joined()

    def deploy(self, recipe: str, name: str, *settings: str) -> Run:
        """Starts `fedelta deploy` on the text of a recipe."""
        path = self.folder / f"{name}.toml"
        path.write_text(recipe)
        for site in self.sites.values():
            site.begin = 0 if site.program is None else site.program.log.stat().st_size
        overrides = [word for setting in settings for word in ("--set", setting)]
        out = self.hub / "runs" / name
        command = fedelta("deploy", path, "--server", self.hub, "--out", out, *overrides)
        return Run(out, self.programs.start(f"deploy-{name}", command, prefix=self.at_server))


@dataclass(frozen=True)
class Run:
    """A deployed experiment.

    Args:
        path: its run directory.
        program: `fedelta deploy`, which follows it.
    """

    path: Path
    program: Program

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The records of the rounds so far."""
        path = self.path / "rounds.jsonl"
        # The last line may be half written.
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def summary(self) -> dict[str, Any]:
        """`summary.json` of the finished run."""
        summary: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        return summary

    @property
    def params(self) -> dict[str, Any]:
        """The tuned tensors after the last round."""
        tensors: dict[str, Any] = load_file(self.path / "adapter" / "adapter_model.safetensors")
        return tensors

    def entries(self, site: str) -> list[dict[str, Any]]:
        """What the records of the rounds so far say about a site."""
        return [entry for record in self.rounds for entry in record["sites"] if entry["site"] == site]

    def in_training(self, site: SiteFolder, deed: Callable[[], object]) -> int:
        """Does something while `site` trains in a round that begins now; returns the number of the round.

        The worker is held meanwhile, so that it cannot be done before.
        """
        while True:
            before = len(site.said)
            round = site.wait_for_training(before)
            for worker in site.workers:
                worker.send_signal(signal.SIGSTOP)
            try:
                if f"round {round}: trained" not in site.said[before:]:
                    deed()
                    return round
            finally:
                for worker in site.workers:
                    worker.send_signal(signal.SIGCONT)

    def wait_for_round(self, round: int, seconds: float = 120) -> None:
        """Waits until a round is complete."""
        until(lambda: len(self.rounds) >= round or not self.program.is_running, seconds, f"round {round} is complete")
        assert len(self.rounds) >= round, f"the run ended before round {round}:\n{self.program.text[-3000:]}"

    def wait(self, seconds: float = 180) -> Run:
        """Waits for the end, and fails unless `fedelta deploy` says success."""
        status = self.program.wait(seconds)
        assert status == 0, f"fedelta deploy ended with {status}:\n{self.program.text[-3000:]}"
        return self


def tensor_bytes(path: Path) -> dict[tuple[int, int, str], dict[str, int]]:
    """Tensor bytes by group in the ledger of a run, for each round, client and direction."""
    rows = map(json.loads, (path / "ledger.jsonl").read_text().splitlines())
    return {(row["round"], row["client_id"], row["direction"]): row["groups"] for row in rows if row["round"] > 0}
