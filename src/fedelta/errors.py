"""Every error that fedelta raises on purpose.

`FedeltaError` is the root. Its message says what is wrong, with the observed and the expected value; its `hint`, if it
has one, says what to do. The user can correct an `InputError` and its subclasses: for them the command line ends with
exit code 2 and leaves no run directory behind.
"""

from __future__ import annotations

from collections.abc import Sequence

# So that a folder of a thousand damaged files does not fill the terminal.
_NUM_SHOWN = 10


class FedeltaError(Exception):
    """Root of all errors of this package.

    Args:
        message: what is wrong, with the observed and the expected value.
        hint: what to do next; None for no hint.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """The message, followed by the hint on a separate line."""
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class InputError(FedeltaError):
    """An input of the user cannot be used."""


class ConfigError(InputError):
    """One or more problems in a configuration, all in one message."""

    def __init__(self, problems: Sequence[str], *, origin: str = "configuration", hint: str | None = None) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{count} in {origin}:{lines}", hint=hint)


class DataError(InputError):
    """The data set is missing, unreadable or does not fit the configuration."""


class ClassesError(DataError):
    """The classes of a data set are not those that are expected."""


class ModelError(InputError):
    """The model is missing, unreadable or does not fit the tuning method or the data."""


class AdapterError(InputError):
    """An adapter directory is unreadable or belongs to another model."""


class RunError(InputError):
    """A run directory is missing, incomplete or already taken."""


class PluginError(InputError):
    """A plug-in cannot be imported or used, or breaks the contract of what it claims to be."""


class SpecError(FedeltaError):
    """Named tensors do not match the specification: names, shapes or finiteness."""


class PayloadError(FedeltaError):
    """Bytes from the wire are truncated, corrupt or meant for another model."""


class CheckpointError(InputError):
    """A checkpoint file is truncated, corrupt or belongs to another run."""


class FormatError(CheckpointError):
    """A checkpoint is of another version of fedelta."""


class RoundError(FedeltaError):
    """A round cannot be completed: too few usable replies, or a model that is no longer finite."""


class LinkError(FedeltaError):
    """The engine of a deployment cannot be reached, or does not take a message."""


class RefusedError(LinkError):
    """The engine of a deployment does not take a call, and will not take it if it is repeated."""


class ContractError(FedeltaError, AssertionError):
    """A method does not keep what its protocol promises (`fedelta.testing`)."""


def refuse(origin: str, problems: Sequence[str], *, hint: str | None = None) -> None:
    """Raises one `DataError` that lists the first ten `problems` of `origin`; does nothing without problems."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  - {problem}" for problem in problems[:_NUM_SHOWN])
        more = f"\n  - and {len(problems) - _NUM_SHOWN} more" if len(problems) > _NUM_SHOWN else ""
        raise DataError(f"{count} in {origin}:{lines}{more}", hint=hint)


def listed(items: Sequence[object], limit: int = 5) -> str:
    """The first `limit` items and how many more there are.

    >>> listed(["a", "b", "c"], limit=2)
    "'a', 'b' and 1 more"
    """
    shown = ", ".join(repr(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def kind_of(value: object) -> str:
    """What a value is, for messages.

    >>> kind_of(3), kind_of(int), kind_of(None)
    ('int', 'the class int', 'None')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else type(value).__name__


def text_of(error: BaseException) -> str:
    """The message of any exception; a plain sentence where it has none that can be shown."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 a class of a user's file may do anything here
        return "(its message cannot be shown)"
