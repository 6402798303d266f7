"""Plug-ins: tuning methods, strategies, codecs, tasks, partitioners and more that are not part of the package.

A class comes from a file (`load_plugin`, `--plugin FILE`), from an installed package (entry point group
`fedelta.plugins`) or from the program itself (`register`). A run records the plug-ins that it used. They have to be
given again to read the run, because code that a run directory names is never executed automatically.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fedelta.catalog import ALL
from fedelta.errors import FedeltaError, PluginError, text_of
from fedelta.settings.base import Settings, settings_in
from fedelta.settings.loading import load_file, take_in
from fedelta.settings.registry import Provider, Registry

Plugin = TypeVar("Plugin", bound=type[Any])
T = TypeVar("T")
Record = dict[str, Any]  # Any: JSON values, as in record/files.py


def load_plugin(path: str | Path) -> list[str]:
    """Registers the classes in a Python file, so that a configuration can name them.

    Args:
        path: of the file; it is executed.

    Returns:
        What it provides, such as `strategy.name = 'mine'`.

    Raises:
        PluginError: the file is missing or fails, has no usable class, takes a name in use, or breaks a contract.
    """
    provider = load_file(path, ALL)
    return [f"{place} = {name!r}" for place, names in _provided(provider).items() for name in names]


def register(plugin: Plugin) -> Plugin:
    """Registers a class, so that a configuration can name it; returns the class, so it works as a decorator.

    A class with the same module and name replaces the earlier one, for example when a notebook cell is run again.
    Processes that this one starts, such as those of a comparison, do not have the class: for them, put it into a file.

    Raises:
        PluginError: the class takes a name in use, or breaks a contract.
    """
    provider = Provider(f"{plugin.__module__}.{plugin.__qualname__}")
    take_in([plugin], provider, ALL, instead_of=provider)
    return plugin


def provider_of(value: object) -> Provider | None:
    """The provider of a setting's class; None for a built-in class."""
    added = (entry for registry in ALL for entry in registry.added.values())
    return next((provider for plugin, provider in added if plugin is type(value)), None)


def called(value: object) -> str:
    """The text for a setting in messages, such as `strategy 'mine' of plug-in 'my_method.py'`."""
    kind = next((registry.kind.noun for registry in ALL if registry.holds(value)), type(value).__name__)
    name = value.model_dump()["name"] if isinstance(value, Settings) else ""
    provider = provider_of(value)
    return f"{kind} {name!r}" + ("" if provider is None else f" of plug-in {provider.label!r}")


def loaded_files() -> list[Provider]:
    """The plug-in files whose classes are registered."""
    return [provider for provider in _providers() if provider.file]


def for_processes() -> list[str]:
    """The loaded plug-in files, as arguments for `load_same` in another process."""
    return [f"{provider.sha256}:{provider.file}" for provider in loaded_files()]


def load_same(arguments: Iterable[str]) -> None:
    """Loads the files that another process has loaded.

    Raises:
        PluginError: a file cannot be used, or has changed since then.
    """
    for argument in arguments:
        sha256, _, file = argument.partition(":")
        provider = load_file(file, ALL)
        if provider.sha256 != sha256:
            raise PluginError(f"plug-in {provider.label!r} has changed since the comparison began.", hint="begin anew.")


def file_records() -> list[Record]:
    """The loaded plug-in files, as records."""
    return [_recorded(provider) for provider in loaded_files()]


def used_by(sections: Iterable[object]) -> list[Record]:
    """The plug-ins that provide the classes of some settings, as a run directory records them."""
    settings = (setting for section in sections for setting in settings_in(section))
    used = dict.fromkeys(provider for setting in settings if (provider := provider_of(setting)) is not None)
    return [_recorded(provider) for provider in used]


def refuse_missing(records: object, where: str) -> None:
    """Raises if recorded plug-ins are not loaded.

    Args:
        records: as `used_by` made them; anything else in a file counts as no record.
        where: name of the run or file with the records, for the message.

    Raises:
        PluginError: plug-ins are missing; names each, and says how to load it.
    """
    missing = [record for record in _valid(records) if not _is_there(record)]
    if missing:
        which = " and ".join(f"{_what(record)!r}, which provides {_provides(record)}" for record in missing)
        raise PluginError(f"{where} needs a plug-in that is not given: {which}.", hint=_how_to_give(missing))


def changed_plugins(records: object) -> list[str]:
    """One sentence for each recorded plug-in whose content or version has changed."""
    problems = []
    for record in _valid(records):
        for provider in _known_for(record):
            current = _recorded(provider)
            if any(record.get(key) != current.get(key) for key in ("sha256", "distribution", "version")):
                problems.append(f"{_what(record)} is {_state(current)} now, it was {_state(record)}")
    return problems


def blame(error: BaseException) -> PluginError | None:
    """The error that names the plug-in in whose code `error` arose; None if it did not arise in a plug-in."""
    labels = _sources()
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_frame.f_code.co_name, trace.tb_lineno))
        trace = trace.tb_next
    inside = [frame for frame in frames if frame[0] in labels]
    if isinstance(error, FedeltaError) or not inside:
        return None
    file, function, line = inside[-1]
    return PluginError(
        f"plug-in {labels[file]!r} failed in `{function}`, line {line}: {type(error).__name__}: {text_of(error)}",
        hint="the error is most likely in that file.",
    )


def suspect(error: BaseException, used: Iterable[Provider] | None = None) -> PluginError | None:
    """The error to show for one that nothing explains, such as that of a wrong value which a plug-in returned earlier.

    Args:
        error: what was raised.
        used: the plug-ins in use; None for all that are known.

    Returns:
        None without plug-ins: then the mistake is the package's, and its traceback is what counts.
    """
    if (blamed := blame(error)) is not None:
        return blamed
    labels = " and ".join(repr(provider.label) for provider in (_providers() if used is None else used))
    if isinstance(error, FedeltaError) or not labels:
        return None
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in `{frames[-1].name}` of {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return PluginError(
        f"a plug-in may have returned something wrong: {type(error).__name__}: {text_of(error)}{where}, with plug-in "
        f"{labels} in use.",
        hint="`fedelta.testing.check` with the file tells what it breaks; if it breaks nothing, please report this.",
    )


def returned(method: object, function: str, value: object, expected: type[T]) -> T:
    """`value`, which `function` of `method` returned.

    Raises:
        PluginError: it is no `expected`.
    """
    if not isinstance(value, expected):
        raise wrong_result(method, function, type(value).__name__, f"a `{expected.__name__}`")
    return value


def wrong_result(method: object, function: str, result: str, expected: str) -> PluginError:
    """The error for a `function` of `method` that returned `result`, in words, and not what its protocol promises."""
    return PluginError(
        f"{called(method)}: `{function}` returned {result}, expected {expected}.",
        hint="docs/plugins.md names the protocol, which says what each function returns.",
    )


def _sources() -> dict[str, str]:
    """The file of each plug-in class that is known, to the label of its provider."""
    added = [entry for registry in ALL for entry in registry.added.values()]
    modules = ((sys.modules.get(plugin.__module__), provider) for plugin, provider in added)
    return {str(getattr(module, "__file__", None)): provider.label for module, provider in modules}


def _providers() -> list[Provider]:
    return list(dict.fromkeys(provider for registry in ALL for _, provider in registry.added.values()))


def _recorded(provider: Provider) -> Record:
    values = {"sha256": provider.sha256, "distribution": provider.distribution, "version": provider.version}
    return {
        "plugin": provider.label,
        **{key: value for key, value in values.items() if value},
        "provides": _provided(provider),
    }


def _provided(provider: Provider) -> dict[str, list[str]]:
    """Key of the configuration to the names that a provider has registered for it."""
    provided: dict[str, list[str]] = {}
    for registry in ALL:
        if names := [name for name, (_, other) in registry.added.items() if other == provider]:
            provided[registry.places[0]] = names
    return provided


def _valid(records: object) -> list[Record]:
    """The valid records in the content of a file."""
    return [
        dict(record)
        for record in (records if isinstance(records, list | tuple) else ())
        if isinstance(record, Mapping)
        and isinstance(record.get("provides"), Mapping)
        and isinstance(record.get("plugin"), str)
    ]


def _names(record: Record) -> Iterator[tuple[Registry, str]]:
    for registry in ALL:
        names = record["provides"].get(registry.places[0])
        yield from ((registry, name) for name in names or () if registry.kind.marks)


def _is_there(record: Record) -> bool:
    return all(name in registry for registry, name in _names(record))


def _known_for(record: Record) -> list[Provider]:
    """The current providers of the names in a record."""
    providers = (registry.provider_of(name) for registry, name in _names(record))
    return list(dict.fromkeys(provider for provider in providers if provider is not None))


def _what(record: Record) -> str:
    return str(record["plugin"])


def _provides(record: Record) -> str:
    return ", ".join(f"`{place}` = {name!r}" for place, names in record["provides"].items() for name in names)


def _state(record: Record) -> str:
    return f"{record['plugin']} (SHA-256 {record['sha256'][:12]}...)" if "sha256" in record else str(record["plugin"])


def _how_to_give(missing: Sequence[Record]) -> str:
    files = [f"`--plugin {_what(record)}`" for record in missing if "sha256" in record]
    packages = [
        f"`pip install {record['distribution']}=={record['version']}`" for record in missing if "distribution" in record
    ]
    classes = [
        f"`fedelta.register` of {_what(record)}" for record in missing if not {"sha256", "distribution"} & record.keys()
    ]
    return f"give {' '.join(files + packages + classes)}; code that a run names is never executed unasked."
