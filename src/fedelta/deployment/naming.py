"""How sites, their addresses and their clients are written, on the command line and in settings."""

from __future__ import annotations

import ipaddress
import re

MAX_CLIENTS = 1_000_000
_EXAMPLE = "fl.example.org:9093"
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_RANGE = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?")


def site_name(text: str) -> str:
    """The name of a site, as it was given: it is also the name of a file, and appears in every record.

    Raises:
        ValueError: it has other characters than allowed, or too many.
    """
    if _SITE.fullmatch(text) is None:
        raise ValueError(
            f"{text!r} is no name of a site: letters from a to z, digits, `.`, `_` and `-`, the first one a letter or "
            "a digit, 63 characters at most"
        )
    return text


def host(text: str) -> str:
    """The name or address of a machine, as it was given.

    Raises:
        ValueError: no machine can be called so.
    """
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if len(text) > 253 or not all(map(_LABEL.fullmatch, text.removesuffix(".").split("."))):
            raise ValueError(f"{text!r} is no name or address of a machine{_in_letters(text)}") from None
    return text


def host_and_port(text: str) -> str:
    """The address of a server, as it was given.

    Raises:
        ValueError: it is not a host, a colon and a port; an IPv6 address stands in square brackets.
    """
    name, _, port = text.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and 0 < int(port) < 2**16
    try:
        host(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError as error:
        reason = f": {error}" if name and is_port else ""
        raise ValueError(f"{text!r} is no host and port, such as {_EXAMPLE!r}{reason}") from None
    if not is_port or (":" in name and not name.startswith("[")):
        raise ValueError(f"{text!r} is no host and port, such as {_EXAMPLE!r}")
    return text


def client_numbers(text: str) -> list[int]:
    """The numbers in a list of numbers and ranges such as `0-31, 40`, in the order given.

    Raises:
        ValueError: it is no such list, a range ends before it begins, or there are more than `MAX_CLIENTS`.
    """
    matches = [_RANGE.fullmatch(part) for part in text.split(",")]
    if not all(matches):
        raise ValueError(f'{text!r} is no list of numbers and ranges, such as "0-31, 40"')
    bounds = [(int(match[1]), int(match[2] or match[1])) for match in matches if match is not None]
    if any(first > last for first, last in bounds):
        raise ValueError(f"{text!r} has a range that ends before it begins")
    if sum(last - first + 1 for first, last in bounds) > MAX_CLIENTS:
        raise ValueError(f"{text!r} has more than {MAX_CLIENTS} clients")
    return [number for first, last in bounds for number in range(first, last + 1)]


def _in_letters(text: str) -> str:
    """How certificates write a name with other letters than English has; empty if it has none."""
    try:
        return "" if text.isascii() else f"; a certificate has it as {text.encode('idna').decode()!r}"
    except UnicodeError:
        return ""
