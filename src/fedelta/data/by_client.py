"""A JSON file that maps each client, by name or number, to a whole number, such as its rank or its depth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedelta.data.clients import Clients
from fedelta.errors import ConfigError, listed

_NUM_SHOWN = 4  # clients of whom a message says what is wrong
_VALUE_LENGTH = 40  # characters of a value
_EXAMPLE: Mapping[str, int] = MappingProxyType({"hamburg": 4, "kiel": 8})


def numbers_in(path: str, key: str, noun: str, clients: Clients, most: int) -> dict[int, int]:
    """The number of every client in a file, by client id.

    Args:
        path: of the file.
        key: the setting that names the file, for messages.
        noun: what the numbers are, for messages.
        clients: all that need one.
        most: the largest number; the least is 1.

    Raises:
        ConfigError: the file cannot be read, lacks a client, has one twice, names an unknown one, or has another value.
    """
    example = dict.fromkeys((str(clients.names.get(number, number)) for number in clients.numbers[:2]), most)
    content, where = entries_in(path, key, noun, example), f"`{key}` {path!r}"
    numbers = {clients.find_text(name): number for name, number in content.items()}
    unknown = [name for name in content if clients.find_text(name) is None]
    problems = []
    if unknown:
        problems.append(f"{where} names {listed(unknown)}, but there are {clients.described}")
    if len(numbers) < len(content) - len(unknown) + bool(unknown):
        problems.append(f"{where} names a client twice, by name and by number")
    if lacking := [clients.called(number) for number in clients.numbers if number not in numbers]:
        problems.append(f"{where} has no {noun} for {_first(lacking)}")
    wrong = [
        f"{clients.called(number)} has {noun} {_shown(numbers[number])}"
        for number in clients.numbers
        if number in numbers and (type(numbers[number]) is not int or not 1 <= numbers[number] <= most)
    ]
    if wrong:
        problems.append(f"{where}: {_first(wrong)}; expected 1 to {most} for every client")
    if problems:
        raise ConfigError(problems, hint=f"write {_expected(noun, example)}.")
    return {number: numbers[number] for number in clients.numbers}


def entries_in(path: str, key: str, noun: str, example: Mapping[str, int] = _EXAMPLE) -> dict[str, Any]:  # Any: JSON
    """The content of a file, whose values are not checked; arguments as for `numbers_in`.

    `example`: a right content, for the message.

    Raises:
        ConfigError: it is no JSON object, or has a key twice.
    """
    try:
        # A byte order mark, which some editors write, is no part of the text.
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=_without_twins)
        if not isinstance(content, dict):
            raise ValueError(f"it holds {_shown(content)}")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            [f"`{key}` {path!r} cannot be read: {error}"],
            hint=f"expected {_expected(noun, example)}.",
        ) from error
    return content


def _without_twins(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these entries; a client that is there twice is refused."""
    content = dict(entries)
    if len(content) != len(entries):
        twins = sorted({key for key, _ in entries if sum(key == other for other, _ in entries) > 1})
        raise ValueError(f"{listed(twins)} stands there more than once")
    return content


def _expected(noun: str, example: Mapping[str, int]) -> str:
    return f"a JSON object that maps clients to {noun}s, such as {json.dumps(dict(example))}"


def _first(texts: list[str]) -> str:
    more = f" and {len(texts) - _NUM_SHOWN} more" if len(texts) > _NUM_SHOWN else ""
    return ", ".join(texts[:_NUM_SHOWN]) + more


def _shown(value: object) -> str:
    """A value as it stands in the file."""
    text = json.dumps(value)
    return text if len(text) <= _VALUE_LENGTH else f"{text[: _VALUE_LENGTH - 3]}..."
