"""The page about every public name of the package, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import fedelta
from fedelta.settings import Settings

_HEAD = """# Python

Every public name of `fedelta`, with its signature, its arguments and its methods.

[Model and data as objects](../python.md) and the [tutorial](../tutorial.md) show how they are used. What a method of
[your own](../plugins.md) has to satisfy is a protocol here: `TuningMethod`, `Strategy`, `Codec`, `Task` and others.
"""
# A section of a docstring in Google's form, up to the next line that is not indented.
_SECTION = re.compile(r"^(Args|Raises|Returns|Yields):\n((?:(?: {4}.*)?\n?)+)", flags=re.MULTILINE)
_IMPLIED = ("self", "cls")
_WIDTH = 100  # characters of a signature in a line


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([_HEAD, *(_entry(name) for name in fedelta.__all__)])


def _entry(name: str) -> str:
    value = getattr(fedelta, name)
    parts = [f"## fedelta.{name}", f"From `{value.__module__}`." if inspect.isclass(value) else ""]
    if inspect.isclass(value) or inspect.isroutine(value):
        parts += [_code(name, value), documented(inspect.getdoc(value) or "")]
    else:
        parts.append(f"`{value!r}`")
    if inspect.isclass(value):
        parts += [_member(member, function) for member, function in _methods(value)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _methods(owner: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties that the class, or a class of the package above it, defines."""
    for name in dict.fromkeys(key for kind in owner.__mro__ if _is_ours(kind) for key in kind.__dict__):
        value = inspect.getattr_static(owner, name)
        is_function = isinstance(value, (property, classmethod, staticmethod)) or inspect.isfunction(value)
        if is_function and not name.startswith("_"):
            yield name, value


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "fedelta"


def _member(name: str, value: object) -> str:
    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    head = f"`{name}`, a property" if isinstance(value, property) else _code(name, function)
    return f"**{name}**\n\n{head}\n\n{documented(inspect.getdoc(function) or '')}"


def _code(name: str, value: object) -> str:
    """The signature; of settings without types, which the page about settings has in words."""
    if getattr(value, "_is_protocol", False):
        return ""
    signature = inspect.signature(value)  # type: ignore[arg-type]
    typed = not (inspect.isclass(value) and issubclass(value, Settings))
    parameters = [_parameter(entry, typed) for entry in signature.parameters.values() if entry.name not in _IMPLIED]
    result = f" -> {_annotation(signature.return_annotation)}" if inspect.isroutine(value) else ""
    line = f"{name}({', '.join(parameters)}){result}"
    if len(line) > _WIDTH:
        line = f"{name}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + f"){result}"
    return f"```text\n{line}\n```"


def _parameter(entry: inspect.Parameter, typed: bool) -> str:
    empty = inspect.Parameter.empty
    kind = f": {_annotation(entry.annotation)}" if typed and entry.annotation is not empty else ""
    equals = " = " if kind else "="
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(entry.kind, "")
    return f"{stars}{entry.name}{kind}" + ("" if entry.default is empty else f"{equals}{entry.default!r}")


def _annotation(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def documented(text: str) -> str:
    r"""A docstring in Google's form as Markdown.

    >>> documented("Adds.\n\nArgs:\n    x: a number\n        above zero.\n")
    'Adds.\n\n**Args**\n\n- `x`: a number above zero.'
    """
    text = _SECTION.sub(lambda match: f"**{match[1]}**\n\n{_listed(match[1], match[2])}\n\n", f"{text}\n")
    blocks = re.split(r"\n{2,}", text.strip())
    return "\n\n".join(f"```python\n{block}\n```" if block.startswith(">>>") else _escaped(block) for block in blocks)


def _listed(section: str, block: str) -> str:
    if section not in ("Args", "Raises"):
        return " ".join(block.split())
    items = []
    for entry in re.split(r"\n(?= {4}\S)", f"\n{block}"):
        names, separator, meaning = " ".join(entry.split()).partition(": ")
        if separator:
            items.append(f"- {', '.join(f'`{name}`' for name in names.split(', '))}: {meaning}")
    return "\n".join(items)


def _escaped(block: str) -> str:
    """Without tags: a `<` in a sentence is a sign. Code keeps it."""
    parts = re.split(r"(`[^`]*`)", block)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)
