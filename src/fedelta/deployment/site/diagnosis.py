"""Why a site does not get through to its server, in words that say what to do.

What may pass by itself is a `LinkError`: the site tries again. What somebody has to mend is an `InputError`.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
from cryptography import x509

from fedelta.errors import FedeltaError, InputError, LinkError, listed

EXPIRED, NOT_YET, OTHER_HOST, OTHER_ADDRESS = 10, 9, 62, 64  # of OpenSSL's X509_V_ERR
_HTTPS_TO_HTTP = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
_HALF_SECOND = 0.5  # a date in whole seconds is that much older, in the mean
_NEGLIGIBLE = 3.0


class KeyRefusedError(LinkError):
    """The server does not accept the site's key, at least at present."""


class RunEndedError(LinkError):
    """The run that a message belongs to is over."""


def diagnosed(error: Exception, server: str) -> FedeltaError:
    """The error to raise instead of one of `httpx`.

    Args:
        error: raised while the server was asked something.
        server: its address, as host:port.
    """
    if isinstance(error, httpx.HTTPStatusError):
        return _of_status(error.response.status_code, server)
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _of_certificate(cause, server)
        if isinstance(cause, ssl.SSLError):
            return _of_handshake(cause, server)
    if isinstance(error, httpx.TimeoutException):
        return LinkError(
            f"the server {server} does not answer in time.", hint="is the address right, and the way open?"
        )
    reason = next((text for cause in reversed(causes) if (text := str(cause))), type(error).__name__)
    return LinkError(
        f"the server {server} cannot be reached: {reason}.",
        hint="does `fedelta server run` run there, and is `server` in site.toml its address and port?",
    )


def clock_offset(date: str | None, now: float) -> float:
    """Seconds that the server's clock is ahead of ours; 0 where that is too little to tell.

    Args:
        date: header `Date` of the server's answer.
        now: our time when it came, in seconds since 1970.
    """
    if date is None:
        return 0.0
    try:
        then = datetime.strptime(date, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
    offset = then + _HALF_SECOND - now
    return offset if abs(offset) > _NEGLIGIBLE else 0.0


def clock_problem(offset: float) -> str | None:
    """What is wrong with this machine's clock, for people; None if nothing is.

    >>> clock_problem(-3600.0)
    "this machine's clock is 1 h 0 min ahead of the server's. ..."
    """
    if abs(offset) < 30:
        return None
    minutes, seconds = divmod(round(abs(offset)), 60)
    amount = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"
    return (
        f"this machine's clock is {amount} {'behind' if offset > 0 else 'ahead of'} the server's. The site goes by the "
        "server's until that is mended (`timedatectl set-ntp true`, say); one of both is wrong."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it, the first cause last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_status(status: int, server: str) -> FedeltaError:
    if status == 401:
        return KeyRefusedError(f"the server {server} does not accept this site's key.")
    if status == 413:
        return LinkError(
            f"the message is larger than the server {server} takes.",
            hint="whoever runs the server sets `max_message_mib` in the recipe.",
        )
    if status in {404, 405, 421}:
        return InputError(
            f"what answers at {server} is no fedelta server (HTTP status {status}).",
            hint="compare `server` in site.toml with what `fedelta server init` printed.",
        )
    return LinkError(f"the server {server} answers with HTTP status {status}.", hint="its logs say why.")


def _of_certificate(error: ssl.SSLCertVerificationError, server: str) -> FedeltaError:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if error.verify_code == EXPIRED:
        return InputError(
            f"the certificate of the server {server} has expired.",
            hint=f"it has to be renewed there; unless this machine's clock is wrong, which says {now}.",
        )
    if error.verify_code == NOT_YET:
        return InputError(
            f"the certificate of the server {server} is not valid yet.",
            hint=f"this machine's clock says {now}; set it (`timedatectl set-ntp true`, say).",
        )
    if error.verify_code in {OTHER_HOST, OTHER_ADDRESS}:
        return InputError(
            f"the certificate of the server {server} is for {_names_in_certificate(server)}.",
            hint="give `server` in site.toml one of these names, or make a certificate with its name there.",
        )
    return InputError(
        f"the certificate of the server {server} is not from the authority in this site's `ca` file "
        f"({error.verify_message}).",
        hint="get `ca.crt` from whoever runs the server; if it is the right one, somebody else answers there.",
    )


def _names_in_certificate(server: str) -> str:
    """The names that the server's certificate is for, read without trusting it; "other names" where that fails."""
    host, _, port = server.rpartition(":")
    try:
        text = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=5)
        extension = x509.load_pem_x509_certificate(text.encode()).extensions
        names = extension.get_extension_for_class(x509.SubjectAlternativeName).value
        return listed([str(name.value) for name in names])
    except (OSError, ValueError, x509.ExtensionNotFound):
        return "other names"


def _of_handshake(error: ssl.SSLError, server: str) -> FedeltaError:
    if error.reason in _HTTPS_TO_HTTP:
        return InputError(
            f"what answers at {server} does not speak TLS.",
            hint="compare `server` in site.toml with what `fedelta server init` printed.",
        )
    return LinkError(f"no secure connection with the server {server}: {error}.")
