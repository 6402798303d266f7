"""Registers the classes of plug-ins, from files, from installed packages or from Python.

`take_in` checks all of them as far as possible without running them. A file is executed once; code that a run directory
names is never executed automatically.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from fedelta.errors import PluginError, text_of
from fedelta.settings.base import Settings
from fedelta.settings.contract import has_all_marks, problems_of, registry_of
from fedelta.settings.registry import Provider, Registry, names_of

logger = logging.getLogger("fedelta")

GROUP = "fedelta.plugins"
_MODULE = "_fedelta_plugin_"
_GIVE = "give the path of the `.py` file with your classes."
_HINT = "docs/plugins.md shows a whole one, and says what each kind has to have."


@dataclass
class Installed:
    """The state of the entry points of installed packages, which are read once.

    Args:
        is_done: whether they have been read.
        broken: distribution to the reason why it cannot be used.
    """

    is_done: bool = False
    broken: dict[str, str] = field(default_factory=dict)


INSTALLED = Installed()


def load_file(path: str | Path, registries: Sequence[Registry]) -> Provider:
    """Executes a plug-in file and registers its classes; does nothing if it is registered already.

    A file whose content has changed replaces its earlier version.

    Raises:
        PluginError: the file is missing, is not Python, fails, has no usable class, or breaks a contract.
    """
    full = Path(path).expanduser().absolute()
    content = _read(full)
    provider = Provider(full.name, str(full), hashlib.sha256(content).hexdigest())
    known = _providers(registries)
    if same := [other for other in known if other.file and other.sha256 == provider.sha256]:
        return same[0]
    module = _execute(full, content, f"{_MODULE}{full.stem}_{provider.sha256[:8]}")
    older = next((other for other in known if other.file == provider.file), None)
    take_in(_candidates(module, registries), provider, registries, instead_of=older)
    return provider


def load_installed(registries: Sequence[Registry]) -> None:
    """Registers the classes in the entry point group `fedelta.plugins` of installed packages, once.

    A plug-in that cannot be used is left out with a warning; `INSTALLED.broken` has the reason.
    """
    if INSTALLED.is_done:
        return
    INSTALLED.is_done = True
    for entry in metadata.entry_points(group=GROUP):
        distribution = entry.dist
        name, version = ("", "") if distribution is None else (distribution.name, distribution.version)
        provider = Provider(f"{name} {version}".strip() or entry.value, distribution=name, version=version)
        try:
            take_in(_offered(entry, provider, registries), provider, registries)
        except PluginError as error:
            INSTALLED.broken[provider.label] = error.message
            logger.warning("the installed plug-in %s is left out: %s", provider.label, error.message.splitlines()[0])


def take_in(
    plugins: Sequence[type[Any]],
    provider: Provider,
    registries: Sequence[Registry],
    *,
    instead_of: Provider | None = None,
) -> None:
    """Registers all classes or, if one cannot be used, none.

    Args:
        plugins: what to register.
        provider: the origin of the classes.
        registries: of all kinds.
        instead_of: the provider whose classes they replace.

    Raises:
        PluginError: there are no classes, or some cannot be used; names every class and problem.
    """
    problems = [] if plugins else [f"no public class in it has {_marks(registries)}"]
    chosen: dict[type[Any], Registry] = {}
    for plugin in plugins:
        registry = registry_of(plugin, registries)
        if registry is None:
            problems.append(
                f"`{plugin.__name__}` has a name, but none of the methods of a kind: {_marks(registries)}; start the "
                "name of a class that is not meant to be chosen with an underscore"
            )
            continue
        where = f"`{plugin.__name__}`, a {registry.kind.noun} by its methods,"
        problems += [f"{where} {problem}" for problem in problems_of(plugin, registry.kind)]
        if issubclass(plugin, Settings):
            chosen[plugin] = registry
            problems += [f"{where} {problem}" for problem in _taken(plugin, chosen, registries, instead_of)]
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise PluginError(f"plug-in {provider.label!r} cannot be used:{lines}", hint=_HINT)
    if instead_of is not None:
        for registry in registries:
            registry.remove(instead_of)
    for plugin, registry in chosen.items():
        registry.add(plugin, provider)


def _marks(registries: Sequence[Registry]) -> str:
    """The methods that identify each kind, for messages."""
    marks = [(registry.kind.noun, registry.kind.marks) for registry in registries if registry.kind.marks]
    return "; ".join(f"{' and '.join(f'`{name}`' for name in names)} ({noun})" for noun, names in marks)


def _taken(
    plugin: type[Settings],
    chosen: dict[type[Any], Registry],
    registries: Sequence[Registry],
    instead_of: Provider | None,
) -> list[str]:
    """The names of a class that are in use, each with its owner."""
    registry = chosen[plugin]
    others = [other for other in registries if set(other.places) & set(registry.places)]
    problems = []
    for name in names_of(plugin):
        built_in = any(name in other.built_in for other in others)
        owner, provider = registry.added.get(name, (plugin, instead_of))
        twin = next(
            (twin for twin in chosen if chosen[twin] is registry and twin is not plugin and name in names_of(twin)),
            None,
        )
        if built_in:
            problems.append(f"is called {name!r}, the name of a built-in {registry.kind.noun}")
        elif owner is not plugin and provider is not None and provider != instead_of:
            problems.append(f"is called {name!r}, the name of the {registry.kind.noun} in plug-in {provider.label!r}")
        elif twin is not None:
            problems.append(f"is called {name!r} like `{twin.__name__}`")
    return problems


def _providers(registries: Sequence[Registry]) -> list[Provider]:
    """The providers of all registered classes, each once."""
    return list(dict.fromkeys(provider for registry in registries for _, provider in registry.added.values()))


def _read(path: Path) -> bytes:
    if path.suffix != ".py":
        raise PluginError(f"plug-in {str(path)!r} is no Python file.", hint=_GIVE)
    try:
        return path.read_bytes()
    except OSError as error:
        raise PluginError(f"plug-in {str(path)!r} cannot be read: {error.strerror or error}.", hint=_GIVE) from error


def _execute(path: Path, content: bytes, name: str) -> ModuleType:
    """The module made from the file; its output goes to standard error, because standard output is for results."""
    module = ModuleType(name)
    module.__file__ = str(path)
    # pydantic and dataclasses look up the module of a class here.
    sys.modules[name] = module
    try:
        with contextlib.redirect_stdout(sys.stderr):
            exec(compile(content, str(path), "exec", dont_inherit=True), vars(module))  # noqa: S102
    # SystemExit and KeyboardInterrupt too: they would end the command without a message.
    except BaseException as error:
        del sys.modules[name]
        raise PluginError(f"plug-in {path.name!r} {_failure(error, path)}.", hint=_advice(error, path)) from error
    return module


def _failure(error: BaseException, path: Path) -> str:
    """The line and the error at which importing a file failed, for messages."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError | ValueError) and len(frames) == 1:  # from `compile`, before a line was run
        line = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) and error.lineno else str(error)
        return f"is no Python: {line}"
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    where = f" in line {lines[-1]}" if lines else ""
    return f"fails when it is imported{where}: {type(error).__name__}: {text_of(error)}".rstrip(": ")


def _advice(error: BaseException, path: Path) -> str:
    if isinstance(error, ModuleNotFoundError):
        return (
            f"install {error.name!r}; if that is a file beside {path.name!r}, put all of it into one file, or make a "
            "package of both."
        )
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return 'keep what a script does in `if __name__ == "__main__":`.'
    return f"try it alone: `python {path}`."


def _candidates(module: ModuleType, registries: Sequence[Registry]) -> list[type[Any]]:
    """The public classes of a module that may be plug-ins: named settings, and classes with the methods of a kind."""
    classes = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and not name.startswith("_")
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
    ]
    named = [kind for kind in dict.fromkeys(classes) if _is_named(kind)]
    marked = [kind for kind in dict.fromkeys(classes) if any(has_all_marks(kind, registry) for registry in registries)]
    # A class with the methods alone may be a helper: the client's side of a strategy has a `start`, as a mean has. It
    # is shown only where the module has nothing else, or where it is settings whose name was forgotten.
    chosen = [kind for kind in marked if issubclass(kind, Settings) or "name" in vars(kind)]
    return list(dict.fromkeys([*named, *chosen])) or marked


def _is_named(kind: type[Any]) -> bool:
    return issubclass(kind, Settings) and "name" in kind.model_fields


def _offered(entry: metadata.EntryPoint, provider: Provider, registries: Sequence[Registry]) -> list[type[Any]]:
    """The classes of an entry point, which names a class or a module."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            offer = entry.load()
    except BaseException as error:
        problem = f"`{entry.value}` cannot be imported: {type(error).__name__}: {text_of(error)}"
        raise PluginError(f"plug-in {provider.label!r}: {problem}.") from error
    if isinstance(offer, type):
        return [offer]
    if isinstance(offer, ModuleType):
        return _candidates(offer, registries)
    raise PluginError(f"plug-in {provider.label!r}: `{entry.value}` is {offer!r}, expected a module or a class.")
