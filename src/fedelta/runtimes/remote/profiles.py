"""The talk that asks a site what it has, and its answer, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedelta.data.clients import Name
from fedelta.errors import PayloadError
from fedelta.runtimes.remote.answers import one_line, strings, sums_in, whole
from fedelta.runtimes.remote.messages import FAILED, PROTOCOL, REFUSED, Message
from fedelta.runtimes.remote.post import MisfitError, Talk
from fedelta.tasks.base import Sums

_LONGEST_NAME = 200  # characters


@dataclass(frozen=True)
class Invitation:
    """What every site is told first.

    Args:
        run: id of the run.
        config: its configuration as TOML.
        version: of fedelta at the server.
    """

    run: str
    config: str
    version: str

    @property
    def message(self) -> Message:
        """As a message."""
        manifest = {"run": self.run, "protocol": PROTOCOL, "version": self.version, "config": self.config}
        return Message("describe", manifest)


@dataclass(frozen=True)
class Profile:
    """What a site says about itself.

    Args:
        class_names: of its labels.
        num_examples: key of each client (number of the part, or name) to its training examples.
        is_natural: whether the keys are names.
        num_test_examples: rows on which the site can measure.
        statistics: sums over the targets of all its clients (`Task.statistics`); empty if the site shares none, or the
            task needs none.
        num_skipped: examples that the site could not read and left out.
    """

    class_names: tuple[str, ...]
    num_examples: Mapping[Name, int]
    is_natural: bool
    num_test_examples: int
    statistics: Sums = Sums()  # noqa: RUF009 a frozen value
    num_skipped: int = 0


def describe(invitation: Invitation) -> Talk[Profile]:
    """The talk that asks a site what it has.

    Raises:
        MisfitError: the site refuses, or has another version.
        PayloadError: its answer cannot be used.
    """
    answer = yield invitation.message
    manifest = expected(answer, "described")
    for what, theirs, ours in (
        ("fedelta", manifest.get("version"), invitation.version),
        ("the protocol of messages", manifest.get("protocol"), PROTOCOL),
    ):
        if theirs != ours:
            raise MisfitError(
                f"the site has version {theirs!r:.40} of {what}, the server has {ours!r}; install the same version"
            )
    is_natural = manifest.get("is_natural")
    if not isinstance(is_natural, bool):
        raise PayloadError(f"`is_natural` is {is_natural!r:.40}, expected true or false.")
    return Profile(
        strings(manifest, "class_names"),
        _sizes(manifest, is_natural=is_natural),
        is_natural,
        whole(manifest.get("num_test_examples"), "num_test_examples", least=0),
        sums_in(manifest.get("statistics", {}), "statistics"),
        whole(manifest.get("num_skipped", 0), "num_skipped", least=0),
    )


def expected(answer: Message, kind: str) -> Mapping[str, Any]:
    """The manifest of an answer.

    Raises:
        MisfitError: the site refuses; with its reason.
        PayloadError: the site failed, or the answer is of another kind.
    """
    if answer.kind == REFUSED and answer.manifest.get("cause") == FAILED:
        raise PayloadError(reason_of(answer))
    if answer.kind == REFUSED:
        raise MisfitError(reason_of(answer))
    if answer.kind != kind:
        raise PayloadError(f"the answer is of kind {answer.kind!r:.40}, expected {kind!r}.")
    return answer.manifest


def reason_of(answer: Message) -> str:
    """Why a site refuses, with its hint, in one line."""
    return one_line(answer.manifest, "reason", "hint") or "the site gives no reason"


def _sizes(manifest: Mapping[str, Any], *, is_natural: bool) -> dict[Name, int]:
    """The clients of a site: key to number of examples."""
    clients = manifest.get("clients")
    if not isinstance(clients, list) or not clients:
        raise PayloadError("`clients` is no list with at least one client.")
    sizes: dict[Name, int] = {}
    for client in clients:
        if not isinstance(client, dict):
            raise PayloadError(f"a client is {client!r:.40}, expected `key` and `num_examples`.")
        key = _key(client.get("key"), is_natural=is_natural)
        if key in sizes:
            raise PayloadError(f"two clients of the site are called {key!r}.")
        sizes[key] = whole(client.get("num_examples"), "num_examples", least=1)
    return sizes


def _key(key: object, *, is_natural: bool) -> Name:
    """A name of at most 200 characters or a whole number; without names the number of a part, 0 or more."""
    if type(key) is int and abs(key) < 2**63 and (is_natural or key >= 0):
        return key
    if is_natural and isinstance(key, str) and 0 < len(key) <= _LONGEST_NAME:
        return key
    raise PayloadError(f"the key of a client is {key!r:.40}, expected a name or a number.")
