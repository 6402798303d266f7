"""The clients of a federation: numbers for computation, names for people.

Plans, payloads and sums identify a client by its number: 0, 1 and so on. A client may also have a name (its id in a
column, a part of a file name, or a name given in Python), which is shown to users and accepted from them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fedelta.errors import DataError, InputError, listed

Name = str | int
_NUM_SHOWN = 20


@dataclass(frozen=True)
class Clients:
    """All clients of a federation, including held-out ones.

    Args:
        numbers: ascending.
        names: number to name; for all clients or for none.

    Raises:
        DataError: the names do not fit the numbers, have other types than texts and integers, or occur twice.
    """

    numbers: tuple[int, ...] = ()
    names: Mapping[int, Name] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.names:
            return
        if self.names.keys() != set(self.numbers):
            odd = sorted(self.names.keys() ^ set(self.numbers))
            raise DataError(f"names are for all clients or for none; clients {listed(odd)} have only one of the two")
        if kinds := {type(name).__name__ for name in self.names.values()} - {"str", "int"}:
            raise DataError(f"clients have names of kind {listed(sorted(kinds))}, expected texts or whole numbers")
        # Compared as texts: in files and on the command line, 1 and "1" are the same.
        counts = Counter(map(str, self.names.values()))
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise DataError(f"several clients are called {listed(repeated)}, expected different names")

    @classmethod
    def of(cls, numbers: Iterable[int], names: Mapping[int, Name] | None = None) -> Clients:
        """These clients, in any order."""
        return cls(tuple(sorted(numbers)), names or {})

    def only(self, numbers: Iterable[int]) -> Clients:
        """The clients with these numbers."""
        selected = set(numbers)
        names = {number: name for number, name in self.names.items() if number in selected}
        return Clients.of(selected, names)

    def called(self, number: int) -> str:
        """The text for a client in messages and on pages.

        >>> Clients.of([0, 1], {0: "ann", 1: "george"}).called(1), Clients.of([0, 1]).called(1)
        ("client 1 ('george')", 'client 1')
        """
        return f"client {number} ({self.names[number]!r})" if number in self.names else f"client {number}"

    def entry(self, number: int, key: str = "client_name") -> dict[str, Name]:
        """The name of a client as an entry for a record that holds its number; empty if it has no name.

        >>> Clients.of([0], {0: "ann"}).entry(0)
        {'client_name': 'ann'}
        """
        return {key: self.names[number]} if number in self.names else {}

    def find(self, key: Name) -> int | None:
        """The number of the client that `key` in a configuration refers to; None if there is none.

        A text is a name. A whole number is a name if all names are whole numbers, also if written as texts; otherwise
        it is the client's number.

        >>> sites = Clients.of([0, 1], {0: 10, 1: 20})
        >>> sites.find(20), sites.find(1), Clients.of([0, 1]).find(1)
        (1, None, 1)
        """
        if isinstance(key, str):
            return self._by_text.get(key)
        if self._by_whole_number is None:
            return key if key in self.numbers else None
        matches = self._by_whole_number.get(key, ())
        return matches[0] if len(matches) == 1 else None

    def find_text(self, text: str) -> int | None:
        """As `find`, for a source that only has texts, such as keys in JSON or arguments on the command line.

        >>> Clients.of([0, 1]).find_text("1"), Clients.of([0, 1], {0: "ann", 1: "george"}).find_text("george")
        (1, 1)
        """
        number = self.find(text)
        return self.find(int(text)) if number is None and _is_whole_number(text) else number

    def number_of(self, key: Name) -> int:
        """The number of a client, given by name or by number.

        Raises:
            InputError: there is no such client; lists all clients.
        """
        number = self.find_text(key) if isinstance(key, str) else self.find(key)
        if number is None:
            raise InputError(f"there is no client {key!r}, expected one of {self.described}.")
        return number

    @property
    def described(self) -> str:
        """The number of clients and their names, as text.

        >>> Clients.of(range(6)).described, Clients.of([0, 1], {0: "ann", 1: "george"}).described
        ('6 clients, 0 to 5', "2 clients: 'ann', 'george'")
        """
        count = f"{len(self.numbers)} client{'' if len(self.numbers) == 1 else 's'}"
        if self.names:
            return f"{count}: {listed([self.names[number] for number in self.numbers], _NUM_SHOWN)}"
        if self.numbers and len(self.numbers) == self.numbers[-1] + 1 > 1:
            return f"{count}, 0 to {self.numbers[-1]}"
        return f"{count}: {listed(self.numbers, _NUM_SHOWN)}"

    @cached_property
    def _by_text(self) -> dict[str, int]:
        return {str(name): number for number, name in self.names.items()}

    @cached_property
    def _by_whole_number(self) -> dict[int, list[int]] | None:
        """Whole number to the clients with that name; None unless all clients have whole numbers as names."""
        if not self.names or not all(_is_whole_number(text) for text in self._by_text):
            return None
        numbers: dict[int, list[int]] = {}
        for text, number in self._by_text.items():
            numbers.setdefault(int(text), []).append(number)
        return numbers


def _is_whole_number(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").isdecimal()
