"""The base of every object that a configuration can describe.

A setting is a frozen value whose fields are the hyperparameters of the object that uses them; there is no
parallel configuration class. An unknown key or a wrong type is refused when the object is made, whether it
comes from a TOML file or from Python. What one section asks of another is checked when all of them are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

_MAX_DEPTH = 16  # twice of what any section has
_MAX_BITS = 63  # TOML 1.0: 64 bits, one of them the sign
_NUM_SHOWN = 40
_NO_SETTINGS = "{} is a plain class, expected one derived from `fedelta.Settings`"
# Any, in this package: values of a TOML table before they are checked, and type annotations as objects.
Table = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """The sections of a configuration, for a setting that depends on others.

    Args:
        sections: name to value, defaults included. A section that could not be read is absent; its conflicts with
                others are reported once it has been corrected.
    """

    sections: Mapping[str, Any]

    def __contains__(self, section: object) -> bool:
        return section in self.sections

    def get(self, path: str) -> Any:
        """The value at a dotted path such as `partition.num_clients`; None where its section is absent.

        >>> Context({"byte_budget_mib": 9.5}).get("byte_budget_mib"), Context({}).get("partition.num_clients")
        (9.5, None)
        """
        section, *keys = path.split(".")
        value = self.sections.get(section)
        for key in keys:
            value = None if value is None else getattr(value, key)
        return value


class Settings(BaseModel):
    """A frozen, strictly checked value; subclasses are final."""

    # The annotation of what one `name` in this setting's table stands for, where it stands for several of its fields.
    shorthand: ClassVar[Any] = None
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """The fields that do not have their default."""
        for name, field in type(self).model_fields.items():
            if field.is_required() or getattr(self, name) != field.get_default(call_default_factory=True):
                yield name, getattr(self, name)

    def problems(self, context: Context) -> list[str]:
        """Messages about conflicts between this setting and others; none by default.

        Args:
            context: all sections of the configuration.
        """
        return []

    def departures(self, before: Context, now: Context, rounds_done: int) -> list[str]:
        """In what a run that goes on with other settings differs from one that had them from the start; empty: nothing.

        Args:
            before: the sections that the rounds so far had.
            now: those that the next rounds have; only the length of the run and its budget of bytes differ.
            rounds_done: number of rounds so far.
        """
        return []


def as_settings(value: object) -> Settings:
    """`value`, typed as its protocol, as the `Settings` that it is.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, Settings):
        raise TypeError(_NO_SETTINGS.format(type(value).__name__))
    return value


def changed(value: T, update: Mapping[str, object]) -> T:
    """A copy of settings of which only the protocol is known, with other values of some fields, which are not checked.

    Raises:
        TypeError: `value` is no settings.
    """
    if isinstance(value, Settings):
        return value.model_copy(update=update)
    raise TypeError(_NO_SETTINGS.format(type(value).__name__))


def problems_of(context: Context) -> list[str]:
    """The problems of every setting in a configuration, those inside of others too."""
    return [problem for setting in _all_settings(context) for problem in setting.problems(context)]


def departures_of(before: Context, now: Context, rounds_done: int) -> list[str]:
    """What every setting in a configuration says; see `Settings.departures`."""
    return [text for setting in _all_settings(now) for text in setting.departures(before, now, rounds_done)]


def _all_settings(context: Context) -> Iterator[Settings]:
    for section in context.sections.values():
        yield from settings_in(section)


def out_of_bounds(table: Table) -> list[str]:
    """What no setting can take, wherever it stands: whole numbers beyond 64 bits, and tables too deep to look into.

    >>> out_of_bounds({"seed": 2**70})
    ['`seed` is a whole number of 71 bits, expected 63 at most (64 with the sign)']
    """
    problems: list[str] = []
    waiting: list[tuple[str, Any, int]] = [("", table, 0)]
    while waiting:
        path, value, depth = waiting.pop(0)
        if depth > _MAX_DEPTH:
            return [*problems, f"`{path[:_NUM_SHOWN]}...` is too deep: expected {_MAX_DEPTH} levels at most"]
        if isinstance(value, dict):
            waiting += [(f"{path}.{key}" if path else str(key), item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(path, item, depth + 1) for item in value]
        elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
            problems.append(
                f"`{path}` is a whole number of {value.bit_length()} bits, expected 63 at most (64 with the sign)"
            )
    return problems


def settings_in(value: object) -> Iterator[Settings]:
    """The setting that `value` is, and all that its fields hold."""
    if isinstance(value, Settings):
        yield value
        for field in type(value).model_fields:
            yield from settings_in(getattr(value, field))
    elif isinstance(value, tuple):
        for item in value:
            yield from settings_in(item)


def without_none(value: Any) -> Any:
    """`value` (JSON values) without keys that are null, which TOML does not have."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_none(item) for item in value]
    return value
