"""Checks a plug-in's class without running it: which kind it is, and what it lacks.

A class must have the methods of the protocol of its kind, with the same parameters, and its properties and class
attributes as fields, class attributes or properties.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fedelta.settings.base import Settings
from fedelta.settings.registry import Kind, Registry, imported, names_of

_NAME = re.compile(r"[a-z][a-z0-9_.-]*")
# Pydantic settings that a class must keep: a value that can change cannot be recorded.
_RULES = {"frozen": True, "extra": "forbid"}
_SIMPLE = (bool, int, str)
_METHODS = (FunctionType, staticmethod, classmethod)


def registry_of(plugin: type[Any], registries: Sequence[Registry]) -> Registry | None:
    """The registry of the kind of which `plugin` has the largest share of methods; None if it has none of any.

    Methods from libraries do not count: every `torch.nn.Module` has an `apply`.
    """
    methods = {
        name
        for base in plugin.__mro__
        if not base.__module__.startswith(("torch", "builtins", "pydantic"))
        for name, value in vars(base).items()
        if isinstance(value, _METHODS)
    }
    shares = {registry: _share(registry.kind, methods) for registry in registries}
    best = max(registries, key=lambda registry: shares[registry])
    return best if shares[best] else None


def has_all_marks(plugin: type[Any], registry: Registry) -> bool:
    """Whether `plugin` has the methods that identify a class of this kind."""
    marks = registry.kind.marks
    return bool(marks) and all(isinstance(inspect.getattr_static(plugin, mark, None), _METHODS) for mark in marks)


def problems_of(plugin: type[Any], kind: Kind) -> list[str]:
    """Messages about what `plugin` lacks to be of this kind; empty if it can be used."""
    if not issubclass(plugin, Settings):
        return ["is not derived from `fedelta.Settings`", *_member_problems(plugin, kind)]
    rules = [
        f"sets `{rule}` to {plugin.model_config.get(rule)!r} in `model_config`, expected {value!r}"
        for rule, value in _RULES.items()
        if plugin.model_config.get(rule) != value
    ]
    return [*rules, *_name_problems(plugin), *_member_problems(plugin, kind)]


def _share(kind: Kind, methods: set[str]) -> float:
    return len(methods.intersection(kind.marks)) / len(kind.marks) if kind.marks else 0.0


def _name_problems(plugin: type[Settings]) -> list[str]:
    field = plugin.model_fields.get("name")
    example = f'`name: Literal["{plugin.__name__.lower()}"] = "{plugin.__name__.lower()}"`'
    if field is None:
        return [f"has no field `name`, expected {example}"]
    if get_origin(field.annotation) is not Literal or len(names_of(plugin)) < len(get_args(field.annotation)):
        return [f"has a `name` that is no literal text, expected {example}"]
    problems = [
        f"is called {name!r}, expected a name of small letters, digits, `-`, `_` and `.`, a letter first"
        for name in names_of(plugin)
        if not _NAME.fullmatch(name)
    ]
    if field.default not in names_of(plugin):
        default = "none" if field.is_required() else repr(field.default)
        expected = " or ".join(map(repr, names_of(plugin)))
        problems.append(f"has {default} as the default of `name`, expected {expected}")
    return problems


def _member_problems(plugin: type[Any], kind: Kind) -> Iterator[str]:
    protocol = imported(kind.protocol)
    for member, expected in vars(protocol).items():
        if member == "name" and issubclass(plugin, Settings):
            continue  # `_name_problems` has it
        if isinstance(expected, FunctionType) and not member.startswith("_"):
            yield from _method_problems(plugin, member, expected)
        elif isinstance(expected, property):
            yield from _value_problems(plugin, member, _hint(expected), expected.__doc__ or "")
    for member in vars(protocol).get("__annotations__", {}):
        yield from _value_problems(plugin, member, None, "")


def _method_problems(plugin: type[Any], member: str, expected: FunctionType) -> Iterator[str]:
    parameters = list(inspect.signature(expected).parameters)
    signature = f"`{member}({', '.join(parameters)})`"
    method = inspect.getattr_static(plugin, member, None)
    if method is None and member not in _fields(plugin):
        yield f"lacks the method {signature}"
    elif isinstance(method, staticmethod | classmethod):
        yield f"has a {type(method).__name__} `{member}`, expected the method {signature}"
    elif not isinstance(method, FunctionType):
        yield f"has `{member}`, which is no method, expected {signature}"
    elif inspect.iscoroutinefunction(method) or inspect.isgeneratorfunction(method):
        yield f"has `{member}` with `async` or `yield`, expected a method {signature} that returns its result"
    elif not _is_callable_with(method, parameters):
        yield f"has `{member}{_shown_parameters(method)}`, expected {signature}"


def _is_callable_with(method: FunctionType, parameters: Sequence[str]) -> bool:
    """Whether a call with these parameters by position suits the method."""
    members = list(inspect.signature(method).parameters.values())
    by_position = [parameter.name for parameter in members if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    extra = [parameter for parameter in members if parameter.name not in parameters and _is_needed(parameter)]
    return by_position[: len(parameters)] == list(parameters) and not extra


def _shown_parameters(method: FunctionType) -> str:
    """The parameters of a method without annotations, such as `(self, rows, *, seed)`."""
    signature = inspect.signature(method)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def _value_problems(plugin: type[Any], member: str, hint: object, meaning: str) -> Iterator[str]:
    if member in _fields(plugin):
        return
    attribute = inspect.getattr_static(plugin, member, None)
    if attribute is None and not _is_set(plugin, member):
        says = f": {meaning[0].lower()}{meaning[1:].rstrip('.')}" if meaning else ""
        yield f"lacks `{member}`{says}"
    elif isinstance(attribute, FunctionType):
        yield f"has a method `{member}`, expected a value; put `@property` above it"
    elif not isinstance(attribute, property) and not _is_of(attribute, hint):
        yield f"has {attribute!r} as `{member}`, expected {_shown(hint)}"


def _is_needed(parameter: inspect.Parameter) -> bool:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variadic


def _fields(plugin: type[Any]) -> dict[str, Any]:
    return dict(plugin.model_fields) if issubclass(plugin, Settings) else {}


def _is_set(plugin: type[Any], member: str) -> bool:
    return any(member in vars(base) for base in plugin.__mro__)


def _hint(member: property) -> object:
    """The return annotation of a protocol's property; None if it cannot be resolved."""
    try:
        return get_type_hints(member.fget).get("return")
    except NameError:  # a name imported for type checkers only
        return None


def _is_of(value: object, hint: object) -> bool:
    """Whether a value matches a hint; only simple types are checked, all others pass."""
    kinds = get_args(hint) or (hint,)
    if get_origin(hint) is Literal:
        return value in kinds
    known = [kind for kind in kinds if kind in _SIMPLE or kind is type(None)]
    if len(known) < len(kinds):
        return True
    return any(type(value) is kind for kind in known)


def _shown(hint: object) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return str(getattr(hint, "__name__", hint) if not get_args(hint) else hint)
