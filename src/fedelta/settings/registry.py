"""The classes that a `name` in a configuration can stand for, built-in ones and plug-ins alike.

A field of settings says what it takes: `strategy: Annotated[Strategy, Chosen(STRATEGIES)]`. Its value is an object of a
registered class, or a table whose `name` picks the class, which then checks the rest of the table. A built-in class is
imported when its name is first asked for, so that listing names imports nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fedelta.settings.base import Settings

# Any, in this file: a registered class has what the protocol of its registry asks for, beside what `Settings` has.


@dataclass(frozen=True)
class Provider:
    """Where a class that is not built in comes from.

    Args:
        label: in lists and messages: the name of its file, or its distribution and version.
        file: its path in full, empty for a class from elsewhere.
        sha256: of the file's content.
        distribution: the installed package that has it, empty for a class from elsewhere.
        version: of that package.
    """

    label: str
    file: str = ""
    sha256: str = ""
    distribution: str = ""
    version: str = ""


@dataclass(frozen=True)
class Kind:
    """What a plug-in can be.

    Args:
        noun: in messages, such as "tuning method".
        protocol: `package.module:Class`, what its classes have to satisfy.
        marks: the methods by which a class is known to be one.
    """

    noun: str
    protocol: str
    marks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Registry(Mapping[str, type[Any]]):
    """The classes of one kind, by the names that configurations call them; built-in ones first.

    Args:
        kind: what they are.
        places: keys of a configuration, whose values are these names, such as `strategy.name`.
        built_in: name to `package.module:Class`, in the order in which they are listed.
        find_more: called before a name is said to be unknown and before all names are listed; it may call `add`.
    """

    kind: Kind
    places: tuple[str, ...]
    built_in: Mapping[str, str]
    find_more: Callable[[], None] = lambda: None
    # The one part of the package that changes while it runs: it has to outlive a configuration, which names the class.
    added: dict[str, tuple[type[Any], Provider]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> type[Any]:
        """The class that is called so, imported if need be.

        Raises:
            KeyError: there is none.
        """
        if name in self.built_in:
            return imported(self.built_in[name])
        if name not in self.added:
            self.find_more()
        return self.added[name][0]

    def __iter__(self) -> Iterator[str]:
        self.find_more()
        return iter(self.known)

    @property
    def known(self) -> list[str]:
        """The names of the classes so far, without looking for more."""
        return [*self.built_in, *self.added]

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __eq__(self, other: object) -> bool:
        """Whether both are the same object: what is registered changes."""
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def add(self, added: type[Settings], provider: Provider) -> None:
        """Takes in a class under each of its names, which are free."""
        for name in names_of(added):
            self.added[name] = (added, provider)

    def remove(self, provider: Provider) -> None:
        """Drops all classes of `provider`."""
        for name in [name for name, (_, other) in self.added.items() if other == provider]:
            del self.added[name]

    def provider_of(self, name: str) -> Provider | None:
        """Where the class of that name comes from; None for a built-in one."""
        return self.added[name][1] if name in self.added else None

    def holds(self, value: object) -> bool:
        """Whether `value` is an object of one of the classes."""
        kind, name = type(value), getattr(value, "name", None)
        if name in self.added:
            return kind is self.added[name][0]
        return f"{kind.__module__}:{kind.__qualname__}" in self.built_in.values()


@dataclass(frozen=True, eq=False)
class Chosen:
    """In the annotation of a field: its value is an object of a class in one of these registries.

    >>> Chosen(Registry(Kind("shape", "", ()), ("shape.name",), {"ball": "shapes:Ball"})).names
    ['ball']
    """

    registries: tuple[Registry, ...]

    def __init__(self, *registries: Registry) -> None:
        object.__setattr__(self, "registries", registries)

    @property
    def names(self) -> list[str]:
        """All that can be chosen."""
        return [name for registry in self.registries for name in registry]

    @property
    def classes(self) -> dict[str, type[Settings]]:
        """Name to class; imports all of them."""
        return {name: chosen for registry in self.registries for name, chosen in registry.items()}

    def __getitem__(self, name: str) -> type[Any]:
        """The class of that name.

        Raises:
            KeyError: there is none.
        """
        chosen = self.get(name)
        if chosen is None:
            raise KeyError(name)
        return chosen

    def get(self, name: object) -> type[Any] | None:
        """The class of that name; None where there is none."""
        if not isinstance(name, str):
            return None
        # One that is known already comes first: looking for more imports installed plug-ins.
        registries = sorted(self.registries, key=lambda registry: name not in registry.known)
        found = (registry.get(name) for registry in registries)
        return next((chosen for chosen in found if chosen is not None), None)

    def read(self, value: object) -> Settings:
        """The setting that `value` is, or describes.

        Raises:
            PydanticCustomError: it is neither; `explain` has the words for it.
            ValidationError: the class that it names does not take the table.
        """
        if isinstance(value, Settings):
            return self._taken(value)
        if not isinstance(value, Mapping):
            raise PydanticCustomError("no_table", "a table of settings")
        if "name" not in value:
            raise PydanticCustomError("no_name", "a name is missing")
        chosen = self.get(value["name"])
        if chosen is None:
            raise PydanticCustomError("unknown_name", "a known name")
        setting: Settings
        try:
            # By way of JSON, where a list stands for a tuple: TOML has no tuples, and a class may be strict about them.
            setting = chosen.model_validate_json(json.dumps(value))
        except TypeError:  # a table made in Python, with objects in it
            setting = chosen.model_validate(value)
        return setting

    def _taken(self, value: Settings) -> Settings:
        if any(registry.holds(value) for registry in self.registries):
            return value
        nouns = " or ".join(dict.fromkeys(registry.kind.noun for registry in self.registries))
        raise PydanticCustomError(
            "unregistered",
            "an object of {kind} is no {nouns} that fedelta knows; make it one with `fedelta.register({kind})`",
            {"kind": type(value).__name__, "nouns": nouns},
        )

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Reads a table or takes an object; written out as what the object is."""
        return core_schema.no_info_plain_validator_function(self.read)


def names_of(kind: type[Settings]) -> tuple[str, ...]:
    """What configurations may call a class of settings; nothing for one without a literal `name`."""
    field = kind.model_fields.get("name")
    return () if field is None else tuple(name for name in get_args(field.annotation) if isinstance(name, str))


def imported(path: str) -> type[Any]:
    """The class at `package.module:Class`."""
    module, _, name = path.partition(":")
    found: type[Any] = getattr(import_module(module), name)
    return found
