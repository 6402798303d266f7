"""The other side of `deployment.py`: Flower as it is, with its FedAvg, on the same work as fedelta.

Same base weights, first adapter, rows, cohorts, batches and optimizer; the folder that `prepare` writes holds them.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
import psutil
import torch
from benchmarks.wire import Meter
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.deploy.processes import Program, Programs, free_port, peak_mib, until

from fedelta.assembly.run import Assembly
from fedelta.data.batches import batches
from fedelta.inference.adapter import SavedAdapter, write_adapter
from fedelta.models.bundles import bundled_path
from fedelta.seeds import stream

APP = Path(__file__).parent / "stock"


@dataclass(frozen=True)
class Timed:
    """What one run of a side gives.

    Args:
        seconds: of each round but the first.
        wire_bytes: between sites and server, from the submission to the end.
        accuracy: on the test set after the last round.
        payload_bytes: of all payloads; 0 if the side has no ledger.
        peak_mib: largest resident size by kind of process.
    """

    seconds: Sequence[float]
    wire_bytes: int
    accuracy: float
    peak_mib: dict[str, float]
    payload_bytes: int = 0


def prepare(assembly: Assembly, folder: Path, num_sites: int) -> None:
    """Writes the task of `assembly` for the stock apps: first adapter, data, and the batches of every round."""
    (folder / "rounds").mkdir(parents=True)
    config, data = assembly.config, assembly.data
    (folder / "base.json").write_text(json.dumps(str(bundled_path(config.model.source.removeprefix("bundled:")))))
    adapter = SavedAdapter(assembly.model.tuning, assembly.params, "", data.class_names)
    write_adapter(folder / "adapter", adapter, assembly.backbone.anatomy, {"modality": "image", "config": {}})
    np.savez(
        folder / "data.npz",
        pixels=data.train.inputs.fetch(torch.arange(len(data.train)))["pixel_values"].numpy(),
        labels=data.train.targets.fetch(torch.arange(len(data.train))).numpy(),
        test_pixels=data.test.inputs.fetch(torch.arange(len(data.test)))["pixel_values"].numpy(),
        test_labels=data.test.targets.fetch(torch.arange(len(data.test))).numpy(),
    )
    num_clients = len(data.partition)
    for number in range(1, config.strategy.num_rounds + 1):
        clients = [
            {
                "id": client,
                "site": client * num_sites // num_clients,
                "num_examples": len(data.partition[client]),
                "batches": _batches(assembly, number, client),
            }
            for client in _cohort(assembly, number)
        ]
        work = {"lr": config.client.lr_in(number, config.strategy.num_rounds), "clients": clients}
        (folder / "rounds" / f"{number}.json").write_text(json.dumps(work))


def _cohort(assembly: Assembly, number: int) -> Sequence[int]:
    strategy, generator = assembly.strategy, stream(assembly.config.seed, "cohort", number)
    plan = strategy.plan({}, number, assembly.federation.clients.numbers, assembly.spec, generator)
    return plan.cohort


def _batches(assembly: Assembly, number: int, client: int) -> list[list[int]]:
    rows, settings = assembly.data.partition[client], assembly.config.client
    order = repeat(stream(assembly.config.seed, "batches", number, client))
    return [batch.tolist() for batch in batches(rows, settings.batch_size, settings.num_steps(len(rows)), order)]


@dataclass
class Stock:
    """A SuperLink and its SuperNodes with TLS and node authentication, everything else as it comes.

    Args:
        folder: new; for keys, logs and apps.
        task: what `prepare` wrote.
        num_sites: number of SuperNodes.
    """

    folder: Path
    task: Path
    num_sites: int
    programs: Programs = field(init=False)

    def __enter__(self) -> Stock:
        self.folder.mkdir(parents=True)
        self.programs = Programs(self.folder)
        _write_keys(self.folder, self.num_sites)
        self._link = free_port()
        self._env = {"FLWR_HOME": str(self.folder / "home")}
        (self.folder / "home").mkdir()
        connection = f'address = "127.0.0.1:{self._link}"\nroot-certificates = "{self.folder / "ca.crt"}"'
        (self.folder / "home" / "config.toml").write_text(f"[superlink.stock]\n{connection}\n")
        self.server = self.programs.start("superlink", self._superlink(), self._env)
        self.server.wait_for("Uvicorn running", 60)
        self.meter = Meter(self._link)
        self.meter.__enter__()
        self.nodes = [self._join(number) for number in range(self.num_sites)]
        return self

    def __exit__(self, *_: object) -> None:
        self.programs.end()
        self.meter.__exit__(None, None, None)

    def run(self, num_rounds: int, fraction_evaluate: float = 0.0) -> Timed:
        """Submits the app and waits for its end."""
        ends, final = self.task / "ends.json", self.task / "final.pt"
        ends.unlink(missing_ok=True)
        final.unlink(missing_ok=True)
        before = self.meter.total
        config = f'folder="{self.task}" num-rounds={num_rounds} num-sites={self.num_sites}'
        with Peaks([self.server, *self.nodes]) as peaks:
            status, text = self._flwr(
                "run",
                str(APP),
                "stock",
                "--run-config",
                f"{config} fraction-evaluate={fraction_evaluate}",
                "--format",
                "json",
            )
            if status or '"success": true' not in text:
                raise RuntimeError(text)
            until(final.exists, 60 + 40 * num_rounds, f"the app is done, see {self.server.log}", every=0.5)
        rounds = json.loads(ends.read_text())
        if [entry["round"] for entry in rounds] != list(range(num_rounds + 1)):
            raise RuntimeError(f"expected {num_rounds} rounds, saw {rounds}")
        times = [entry["time_s"] for entry in rounds]
        seconds = [after - earlier for earlier, after in pairwise(times[1:])]  # the first round is left out
        return Timed(seconds, self.meter.total - before, rounds[-1]["accuracy"], peaks.highest)

    def _superlink(self) -> list[str]:
        folder = self.folder
        return [
            _program("flower-superlink"), "--host", "127.0.0.1", "--port", str(self._link), "--enable-supernode-auth",
            "--ssl-ca-certfile", f"{folder / 'ca.crt'}", "--ssl-certfile", f"{folder / 'server.pem'}",
            "--ssl-keyfile", f"{folder / 'server.key'}",
        ]  # fmt: skip

    def _join(self, number: int) -> Program:
        status, text = self._flwr("supernode", "register", str(self.folder / f"node{number}.pub"), "stock")
        if status:
            raise RuntimeError(text)
        return self.programs.start(f"node{number}", [
            _program("flower-supernode"), "--superlink", f"127.0.0.1:{self.meter.port}",
            "--root-certificates", f"{self.folder / 'ca.crt'}", "--port", str(free_port()),
            "--auth-supernode-private-key", f"{self.folder / f'node{number}'}", "--node-config", f"site={number}",
        ], self._env)  # fmt: skip

    def _flwr(self, *arguments: str) -> tuple[int, str]:
        return self.programs.run("flwr", [_program("flwr"), *arguments], self._env)


class Peaks:
    """The largest resident size of each kind of process while it is open.

    Args:
        programs: whose processes are watched.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        self.highest: dict[str, float] = {}
        self._programs = programs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            for program in self._programs:
                for process in program.tree():
                    kind = kind_of(process)
                    self.highest[kind] = max(self.highest.get(kind, 0.0), peak_mib(process))


def kind_of(process: psutil.Process) -> str:
    """What a process is called in the table: the script or module that it runs."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return "gone"
    if "-m" in command[:4]:
        return command[command.index("-m") + 1]
    names = [Path(word).name for word in command if not word.startswith("-")]
    return next((name for name in names if not name.startswith("python")), "python")


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _write_keys(folder: Path, num_sites: int) -> None:
    """An authority, the server's certificate for loopback, and a key for each node."""
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "benchmark")])
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    (folder / "ca.crt").write_bytes(_certificate(issuer, authority, issuer, authority, is_authority=True))
    signed = _certificate(subject, server, issuer, authority, names=names)
    (folder / "server.pem").write_bytes(signed)
    (folder / "server.key").write_bytes(_private(server, serialization.PrivateFormat.PKCS8))
    for number in range(num_sites):
        node = ec.generate_private_key(ec.SECP384R1())
        (folder / f"node{number}").write_bytes(_private(node, serialization.PrivateFormat.OpenSSH))
        public = node.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        (folder / f"node{number}.pub").write_bytes(public)


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _certificate(subject, key, issuer, signer, *, is_authority=False, names=()) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)
