"""Who the clients are: numbers inside, and names wherever people look.

Plans, payloads and sums know a client by its number: 0, 1 and so on. A client that has a name (its id in a column, its
part of a file name, or what it is called in Python) is shown with it and may be called by it.
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
    """Every client of a federation, those that no round asks among them.

    Args:
        numbers: ascending.
        names: number to name; of all clients, or of none.

    Raises:
        DataError: names for other clients than there are, of several kinds, or one name twice.
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
        # As texts: 1 and "1" could not be told apart in files and on the command line.
        counts = Counter(map(str, self.names.values()))
        if twice := [name for name, count in counts.items() if count > 1]:
            raise DataError(f"several clients are called {listed(twice)}, expected a name for each")

    @classmethod
    def of(cls, numbers: Iterable[int], names: Mapping[int, Name] | None = None) -> Clients:
        """These clients, in any order."""
        return cls(tuple(sorted(numbers)), names or {})

    def only(self, numbers: Iterable[int]) -> Clients:
        """These of them, and nobody else."""
        kept = set(numbers)
        names = {number: name for number, name in self.names.items() if number in kept}
        return Clients.of(kept, names)

    def called(self, number: int) -> str:
        """A client in messages and on pages.

        >>> Clients.of([0, 1], {0: "ann", 1: "george"}).called(1), Clients.of([0, 1]).called(1)
        ("client 1 ('george')", 'client 1')
        """
        return f"client {number} ({self.names[number]!r})" if number in self.names else f"client {number}"

    def entry(self, number: int, key: str = "client_name") -> dict[str, Name]:
        """The name of a client for a record that holds its number; nothing where it has none.

        >>> Clients.of([0], {0: "ann"}).entry(0)
        {'client_name': 'ann'}
        """
        return {key: self.names[number]} if number in self.names else {}

    def find(self, key: Name) -> int | None:
        """The number of the client that `key` means in a configuration; None where it means none.

        A text is a name. A whole number is a name where all clients are named by whole numbers, be they written as
        texts, and else the number itself.

        >>> sites = Clients.of([0, 1], {0: 10, 1: 20})
        >>> sites.find(20), sites.find(1), Clients.of([0, 1]).find(1)
        (1, None, 1)
        """
        if isinstance(key, str):
            return self._by_text.get(key)
        if self._by_whole_number is None:
            return key if key in self.numbers else None
        meant = self._by_whole_number.get(key, ())
        return meant[0] if len(meant) == 1 else None

    def find_text(self, text: str) -> int | None:
        """The same for what is always a text, such as a key in JSON or a word on the command line.

        >>> Clients.of([0, 1]).find_text("1"), Clients.of([0, 1], {0: "ann", 1: "george"}).find_text("george")
        (1, 1)
        """
        number = self.find(text)
        return self.find(int(text)) if number is None and _is_whole_number(text) else number

    def number_of(self, key: Name) -> int:
        """The client that somebody asks for by name or by number.

        Raises:
            InputError: there is none; says which there are.
        """
        number = self.find_text(key) if isinstance(key, str) else self.find(key)
        if number is None:
            raise InputError(f"there is no client {key!r}, expected one of {self.described}.")
        return number

    @property
    def described(self) -> str:
        """How many there are, and what they are called.

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
        """Whole number to the clients that are named by it; None where some have other names, or none."""
        if not self.names or not all(_is_whole_number(text) for text in self._by_text):
            return None
        meant: dict[int, list[int]] = {}
        for text, number in self._by_text.items():
            meant.setdefault(int(text), []).append(number)
        return meant


def _is_whole_number(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").isdecimal()
