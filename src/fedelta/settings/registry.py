"""Registries of the classes that a `name` in a configuration can select, built-in ones and plug-ins.

The annotation of a field names its registry: `strategy: Annotated[Strategy, Chosen(STRATEGIES)]`. The value is an
object of a registered class, or a table whose `name` selects the class, which then checks the rest of the table. A
built-in class is imported on first use, so that listing names imports nothing.
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

# Any, in this file: a registered class satisfies the protocol of its registry and derives from `Settings`.


@dataclass(frozen=True)
class Provider:
    """The origin of a class that is not built in.

    Args:
        label: in lists and messages: the name of its file, or its distribution and version.
        file: its absolute path; empty for a class that is not from a file.
        sha256: of the file's content.
        distribution: the installed package with the class; empty for a class that is not from a package.
        version: of that package.
    """

    label: str
    file: str = ""
    sha256: str = ""
    distribution: str = ""
    version: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of method, such as strategies.

    Args:
        noun: word for messages, such as "tuning method".
        protocol: `package.module:Class` of the protocol that its classes satisfy.
        marks: names of the methods that identify a class of this kind.
    """

    noun: str
    protocol: str
    marks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Registry(Mapping[str, type[Any]]):
    """The classes of one kind, by their names in configurations; built-in ones first.

    Args:
        kind: of the classes.
        places: keys of the configuration that take these names, such as `strategy.name`.
        built_in: name to `package.module:Class`, in the order of `fedelta list`.
        find_more: called before an unknown name is refused and before all names are listed; it may call `add`.
    """

    kind: Kind
    places: tuple[str, ...]
    built_in: Mapping[str, str]
    find_more: Callable[[], None] = lambda: None
    # The only global state of the package: a registration outlives the configuration that names the class.
    added: dict[str, tuple[type[Any], Provider]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> type[Any]:
        """The class called `name`, imported on first use.

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
        """The names that are registered so far, without a search for installed plug-ins."""
        return [*self.built_in, *self.added]

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __eq__(self, other: object) -> bool:
        """Whether both are the same object, because the content changes."""
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def add(self, added: type[Settings], provider: Provider) -> None:
        """Registers a class under all of its names, which must not be in use."""
        for name in names_of(added):
            self.added[name] = (added, provider)

    def remove(self, provider: Provider) -> None:
        """Drops all classes of `provider`."""
        for name in [name for name, (_, other) in self.added.items() if other == provider]:
            del self.added[name]

    def provider_of(self, name: str) -> Provider | None:
        """The provider of the class called `name`; None for a built-in class."""
        return self.added[name][1] if name in self.added else None

    def holds(self, value: object) -> bool:
        """Whether `value` is an object of one of the classes."""
        kind, name = type(value), getattr(value, "name", None)
        if name in self.added:
            return kind is self.added[name][0]
        return f"{kind.__module__}:{kind.__qualname__}" in self.built_in.values()


@dataclass(frozen=True, eq=False)
class Chosen:
    """Marks a field whose value is an object of a class in one of these registries.

    >>> Chosen(Registry(Kind("shape", "", ()), ("shape.name",), {"ball": "shapes:Ball"})).names
    ['ball']
    """

    registries: tuple[Registry, ...]

    def __init__(self, *registries: Registry) -> None:
        object.__setattr__(self, "registries", registries)

    @property
    def names(self) -> list[str]:
        """All names in the registries."""
        return [name for registry in self.registries for name in registry]

    @property
    def classes(self) -> dict[str, type[Settings]]:
        """Name to class; imports all classes."""
        return {name: chosen for registry in self.registries for name, chosen in registry.items()}

    def __getitem__(self, name: str) -> type[Any]:
        """The class called `name`.

        Raises:
            KeyError: there is none.
        """
        chosen = self.get(name)
        if chosen is None:
            raise KeyError(name)
        return chosen

    def get(self, name: object) -> type[Any] | None:
        """The class called `name`; None if there is none."""
        if not isinstance(name, str):
            return None
        # Registries that have the name come first, because a search for more names imports installed plug-ins.
        registries = sorted(self.registries, key=lambda registry: name not in registry.known)
        classes = (registry.get(name) for registry in registries)
        return next((chosen for chosen in classes if chosen is not None), None)

    def read(self, value: object) -> Settings:
        """`value` itself if it is a setting, or the setting that the table `value` describes.

        Raises:
            PydanticCustomError: it is neither; `explain` makes a message of it.
            ValidationError: the class refuses the table.
        """
        if isinstance(value, Settings):
            return self._taken(value)
        if isinstance(value, type):
            raise PydanticCustomError("no_table", "an object, not the class: `{name}()`", {"name": value.__name__})
        if not isinstance(value, Mapping):
            raise PydanticCustomError("no_table", "a table of settings")
        if "name" not in value:
            raise PydanticCustomError("no_name", "a name is missing")
        chosen = self.get(value["name"])
        if chosen is None:
            raise PydanticCustomError("unknown_name", "a known name")
        setting: Settings
        try:
            # Through JSON, where lists are valid tuples: TOML has no tuples, and strict classes would refuse lists.
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
        """Validates with `read`; the value is dumped by its class."""
        return core_schema.no_info_plain_validator_function(self.read)


def names_of(kind: type[Settings]) -> tuple[str, ...]:
    """The names of a class of settings in configurations; empty for a class without a literal `name`."""
    field = kind.model_fields.get("name")
    return () if field is None else tuple(name for name in get_args(field.annotation) if isinstance(name, str))


def imported(path: str) -> type[Any]:
    """The class at `package.module:Class`."""
    module, _, name = path.partition(":")
    chosen: type[Any] = getattr(import_module(module), name)
    return chosen
