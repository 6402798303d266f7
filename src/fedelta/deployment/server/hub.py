"""The server's folder: what is where, its settings, and how it is made.

server.toml   how sites reach the server
tls/          the authority and the server's certificate; ca.crt goes to every site
sites/        one public key for each site, NAME.pub; a file put there registers the site, removing it ends its access
runs/         the run directories of deployments
state/        what the server keeps: Flower's database, secrets, logs, deployments; nothing in it is edited by hand
"""

from __future__ import annotations

import ipaddress
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

from fedelta.deployment import naming
from fedelta.deployment.server import certificates
from fedelta.deployment.server.certificates import AUTHORITY_DAYS, SERVER_DAYS, Certificates
from fedelta.durable import make_private, only_owner_may_read, write_atomic, write_secret
from fedelta.errors import ConfigError, InputError
from fedelta.settings.base import Settings
from fedelta.settings.explain import explain

DEFAULT_PORT = 9093
_TEMPLATE = """# The server of a federation, made by `fedelta server init`. Restart `fedelta server run` after a change.

[server]
# The name or address by which sites reach this machine; it is in the certificate. After a change:
# `fedelta server init FOLDER --renew`.
host = "{host}"
port = {port}

# The address of this machine to listen on: "0.0.0.0" for all of them.
listen = "{listen}"

# The largest answer of a site. A larger one is refused, even if a recipe allows it.
max_message_mib = {max_message_mib}
"""


class ServerSettings(Settings):
    """Section `[server]` of server.toml."""

    host: Annotated[str, AfterValidator(naming.host)]
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535)
    listen: str = "0.0.0.0"  # noqa: S104 sites are on other machines; what they may ask is bounded by the proxy
    # A full model of 250 million parameters in float32; ours send far less.
    max_message_mib: int = Field(default=1024, ge=1, le=2**20)

    @property
    def address(self) -> str:
        """Host and port, as sites write them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _File(Settings):
    server: ServerSettings


@dataclass(frozen=True)
class Hub:
    """A server's folder.

    Args:
        path: of the folder.
    """

    path: Path

    @property
    def settings_file(self) -> Path:
        """How sites reach the server."""
        return self.path / "server.toml"

    @property
    def certificates(self) -> Certificates:
        """For TLS."""
        return Certificates(self.path / "tls")

    @property
    def sites(self) -> Path:
        """The public keys of registered sites."""
        return self.path / "sites"

    @property
    def runs(self) -> Path:
        """Run directories of deployments."""
        return self.path / "runs"

    @property
    def state(self) -> Path:
        """What the server keeps."""
        return self.path / "state"

    @property
    def logs(self) -> Path:
        """What the programs print."""
        return self.state / "logs"

    @property
    def database(self) -> Path:
        """Flower's."""
        return self.state / "superlink.db"

    @property
    def secret(self) -> Path:
        """Shared by this server and Flower's programs on this machine."""
        return self.state / "secret"

    @property
    def flower_home(self) -> Path:
        """Where Flower's programs keep what they install."""
        return self.state / "flower"

    @property
    def lock(self) -> Path:
        """Locked while a server runs on this folder."""
        return self.state / "lock"

    @property
    def presence(self) -> Path:
        """What the running server knows about each site."""
        return self.state / "sites.json"

    @property
    def deployments(self) -> Path:
        """One record for each deployment."""
        return self.state / "deployments"

    @classmethod
    def open(cls, path: Path) -> Hub:
        """The server's folder at `path`.

        Raises:
            InputError: it is none.
        """
        hub = cls(path)
        if not hub.settings_file.is_file():
            raise InputError(
                f"{str(path)!r} is no server folder: it has no {hub.settings_file.name!r}.",
                hint=f"`fedelta server init {quote(str(path))} --host NAME` makes one.",
            )
        return hub

    def settings(self) -> ServerSettings:
        """The content of server.toml.

        Raises:
            ConfigError: it cannot be read or is wrong; lists all problems.
        """
        origin = str(self.settings_file)
        try:
            table = tomllib.loads(self.settings_file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ConfigError([f"cannot be read: {error.strerror}"], origin=origin) from error
        except ValueError as error:
            raise ConfigError([f"is not TOML: {error}"], origin=origin) from error
        return _checked(table, origin)


def create(path: Path, host: str, port: int) -> Hub:
    """Makes a server's folder: authority, certificate, secret and settings.

    Raises:
        InputError: there is something at `path` already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(
            f"{str(path)!r} exists already; nothing was changed.",
            hint=f"`fedelta server init {quote(str(path))} --renew` makes a new certificate for it.",
        )
    listen = host if _is_loopback(host) else ServerSettings.model_fields["listen"].default
    settings = _checked({"server": {"host": host, "port": port, "listen": listen}}, "the command line")
    hub = Hub(path)
    for folder in (path, hub.certificates.folder, hub.sites, hub.runs):
        make_private(folder)
    certificates.create(hub.certificates, host)
    restore_state(hub)
    # Last: with it the folder is one.
    write_atomic(hub.settings_file, _TEMPLATE.format(**settings.model_dump()))
    return hub


def restore_state(hub: Hub) -> None:
    """Makes what is missing in the folder `state`; all of it can be lost but for the list of deployments."""
    for folder in (hub.state, hub.logs, hub.flower_home, hub.deployments):
        make_private(folder)
    if not hub.secret.is_file():
        write_secret(hub.secret, secrets.token_hex(32).encode())
    if not hub.lock.is_file():
        write_secret(hub.lock, b"")


def renew(hub: Hub) -> None:
    """Makes a new certificate of the server; sites notice nothing."""
    certificates.renew(hub.certificates, hub.settings().host)


def refuse_open_secrets(hub: Hub) -> None:
    """Refuses to run with keys and secrets that others on this machine can read.

    Raises:
        InputError: names all of them.
    """
    secret_files = (hub.certificates.server_key, hub.certificates.authority_key, hub.secret, hub.state)
    shared = [str(path) for path in secret_files if path.exists() and not only_owner_may_read(path)]
    if shared:
        raise InputError(
            f"others on this machine can read {', '.join(map(repr, shared))}.",
            hint=f"chmod go= {' '.join(map(quote, shared))}",
        )


def handout(hub: Hub) -> str:
    """What the operator has to know after `create`."""
    settings = hub.settings()
    return (
        f"server folder {hub.path}: certificate of {settings.host!r} for {SERVER_DAYS} days, authority for "
        f"{AUTHORITY_DAYS} days\n"
        f"give every site:   {hub.certificates.authority}  and the address {settings.address}\n"
        f"each site runs:    fedelta site init DIR --name NAME --server {settings.address} --ca ca.crt\n"
        f"register a site:   copy its NAME.pub into {hub.sites}\n"
        f"start the server:  fedelta server run {quote(str(hub.path))}"
    )


def _checked(table: Mapping[str, object], origin: str) -> ServerSettings:
    section = table.get("server")
    if not isinstance(section, dict) or len(table) > 1:
        raise ConfigError([f"has {sorted(table)}, expected the section `[server]` only"], origin=origin)
    try:
        return ServerSettings.model_validate(section)
    except ValidationError as error:
        raise ConfigError(explain(error.errors(), "server", section, _File), origin=origin) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
