"""Classes that are known before the data are read: at a site, those of the whole federation.

A site sees only its own labels. They are matched with the known classes by name, so that every site numbers them alike.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from fedelta.errors import ClassesError, listed
from fedelta.tasks.class_names import loose
from fedelta.tasks.targets import TargetColumn

_MANY = 20  # a column with more foreign values than this holds no classes, and its values may be private
_LONG = 40
OTHERS = "(the classes that this site lacks)"


@dataclass(frozen=True)
class KnownClasses:
    """The classes of a federation.

    Args:
        names: in label order; none if they are still to be found.
        may_lack: whether data may lack some of them.
    """

    names: tuple[str, ...]
    may_lack: bool = False

    def applied(self, column: TargetColumn, *, is_training: bool = True) -> tuple[TargetColumn, list[str]]:
        """The column with the known classes in their order, and messages about what does not fit them.

        Args:
            column: with a label or a list of labels in each row: integers, texts, truth values or class labels.
            is_training: whether every class has to be present.
        """
        names = [_names(column, value) for value in column.values]
        present = {name for of_row in names for name in of_row}
        number_of = self._numbers(present)
        foreign = sorted(name for name in present if name not in number_of)
        problems = [self._foreign(column, foreign)] if foreign else []
        held = {number_of[name] for name in present if name in number_of}
        lacking = [name for number, name in enumerate(self.names) if number not in held]
        if is_training and lacking and not self.may_lack:
            problems.append(
                f"label column {column.name!r} lacks {len(lacking)} of the federation's {len(self.names)} classes: "
                f"{listed(lacking)}; if that is right, set `allow_missing_classes = true` for this site"
            )
        values = [
            _like(value, [number_of.get(name, -1) for name in of_row])
            for value, of_row in zip(column.values, names, strict=True)
        ]
        return replace(column, values=values, class_names=self.names), problems

    def of_data(
        self, train: TargetColumn, test: TargetColumn | None, origin: str
    ) -> tuple[TargetColumn, TargetColumn | None]:
        """`applied` to the columns of a training and a test set.

        Raises:
            ClassesError: a column does not fit the known classes.
        """
        known = self.found_in(train, test)
        if not known.names:
            return train, test
        train, problems = known.applied(train)
        if test is not None:
            test, more = known.applied(test, is_training=False)
            problems = [*problems, *more]
        if problems:
            raise ClassesError(f"{origin}: {'; '.join(problems)}.")
        return train, test

    def found_in(self, *columns: TargetColumn | None) -> KnownClasses:
        """The classes of these columns, of which there may be a single one; itself if that is not for it to find."""
        held: dict[str, Any] = {}
        for column in filter(None, columns):
            labels = (item for value in column.values for item in (value if isinstance(value, list) else [value]))
            held |= {_name(column, label): label for label in labels if label is not None}
        if self.names or not self.may_lack or not 1 <= len(held) <= _MANY:
            return self
        kinds = {type(value) for value in held.values()}
        names = sorted(held, key=held.__getitem__) if kinds == {int} else sorted(held)
        return replace(self, names=(*names, *([OTHERS] if len(names) == 1 else [])))

    def _numbers(self, present: Set[str]) -> dict[str, int]:
        """The number of each name that is a known class; without regard to case and spaces if that fits better."""
        exact = {name: number for number, name in enumerate(self.names)}
        alike = {loose(name): number for number, name in enumerate(self.names)}
        if present <= exact.keys() or len(alike) < len(exact) or len({loose(name) for name in present}) < len(present):
            return exact
        return {name: alike[loose(name)] for name in present if loose(name) in alike}

    def _foreign(self, column: TargetColumn, foreign: Sequence[str]) -> str:
        shown = "" if len(foreign) > _MANY else f": {listed([name[:_LONG] for name in foreign])}"
        return (
            f"label column {column.name!r} of the {column.what} has {len(foreign)} classes that the federation does "
            f"not have{shown}; expected {listed(self.names)}; name them alike at all sites, or leave these rows out"
        )


def _names(column: TargetColumn, value: object) -> list[str]:
    """The names of the classes of a row: of one label, of any number in a list, none where it is missing."""
    labels = value if isinstance(value, list) else [value]
    return [_name(column, label) for label in labels if label is not None]


def _like(value: object, numbers: Sequence[int]) -> object:
    """The numbers of a row's classes: a list if the row has one."""
    if isinstance(value, list):
        return list(numbers)
    return numbers[0] if numbers else None


def _name(column: TargetColumn, value: object) -> str:
    """The name of a class."""
    names = column.class_names
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return str(value)
