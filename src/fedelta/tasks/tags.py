"""Reads tags, one for each word, and finds the spans that they mark.

A span is a B- tag and the I- tags of the same kind behind it (IOB2). An I- tag without such a tag before it begins a
span too; E- and L- end one, S- and U- are one. A tag without such a prefix is a span by itself, but `O` is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedelta.errors import listed
from fedelta.tasks.targets import ReadTargets, TargetColumn

OUTSIDE = "O"
NO_TAG = -100  # where a row has no word any more
_BEGINS, _GOES_ON, _ENDS = frozenset("BSU"), frozenset("IEL"), frozenset("ELSU")


@dataclass(frozen=True)
class Tags:
    """The tags of the words of each row.

    Args:
        values: int64, those of all rows, concatenated.
        lengths: number of words of each row, int64 of shape [N].
        strata: the tag of the row that the fewest words of the training set have, int64 of shape [N].
    """

    values: Tensor
    lengths: Tensor
    strata: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def fetch(self, rows: Tensor) -> Tensor:
        """The tags of `rows`, [R, W], `NO_TAG` behind the last word of a row."""
        return pad_sequence(self._rows(rows), batch_first=True, padding_value=NO_TAG)

    def select(self, rows: Tensor) -> Tags:
        """The tags of `rows` alone."""
        return Tags(torch.cat([self.values[:0], *self._rows(rows)]), self.lengths[rows], self.strata[rows])

    def _rows(self, rows: Tensor) -> list[Tensor]:
        ends = self.lengths.cumsum(0)
        return [self.values[end - length : end] for end, length in zip(ends[rows], self.lengths[rows], strict=True)]


@dataclass(frozen=True, order=True)
class Span:
    """Words that belong together.

    Args:
        start, end: numbers of the first word and of the one behind the last, from 0.
        kind: such as "PER".
    """

    start: int
    end: int
    kind: str


_NONE = Tags(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)))


def spans(tags: Sequence[str]) -> list[Span]:
    """The spans that a row of tags marks.

    >>> spans(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [Span(start=0, end=2, kind='PER'), Span(start=3, end=4, kind='LOC'), Span(start=4, end=5, kind='LOC')]
    """
    closed: list[Span] = []
    start, kind = 0, ""  # of the open span; no kind: there is none
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, of_tag = _parts(tag)
        if kind and (prefix not in _GOES_ON or of_tag != kind):
            closed.append(Span(start, place, kind))
            kind = ""
        if of_tag and not kind:
            start, kind = place, of_tag
        if kind and prefix in _ENDS:
            closed.append(Span(start, place + 1, kind))
            kind = ""
    return closed


def _parts(tag: str) -> tuple[str, str]:
    """The prefix of a tag and its kind; of `O` neither, of a tag without a prefix "U" and the tag."""
    if tag == OUTSIDE:
        return "", ""
    if len(tag) > 2 and tag[1] == "-" and tag[0] in _BEGINS | _GOES_ON:
        return tag[0], tag[2:]
    return "U", tag


def read_tags(train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
    """The tags of both sets, which are those of the training set; `O` is the first, the others are sorted by kind."""
    columns = [train] if test is None else [train, test]
    if problems := [problem for column in columns for problem in _problems(column)]:
        return ReadTargets(_NONE, None, (), (), tuple(problems))
    rows = [[[_name(column, tag) for tag in row] for row in _lists(column)] for column in columns]
    names = train.class_names or tuple(sorted({tag for row in rows[0] for tag in row}, key=_order))
    if len(names) < 2:
        return ReadTargets(_NONE, None, (), (), (f"tag column {train.name!r} has only one tag, {names[0]!r}",))
    number_of = {name: number for number, name in enumerate(names)}
    foreign = sorted({tag for of_set in rows for row in of_set for tag in row} - number_of.keys())
    if foreign:
        problem = f"{columns[-1].what}: the tags {listed(foreign)} are not among {listed(list(names))}"
        return ReadTargets(_NONE, None, (), (), (problem,))
    flat = [torch.tensor([number_of[tag] for row in of_set for tag in row]) for of_set in rows]
    counts = flat[0].bincount(minlength=len(names))
    targets = [_tags(values, of_set, counts) for values, of_set in zip(flat, rows, strict=True)]
    return ReadTargets(targets[0], targets[1] if test is not None else None, names, names, notes=_notes(train, names))


def _tags(values: Tensor, rows: Sequence[Sequence[str]], counts: Tensor) -> Tags:
    lengths = torch.tensor([len(row) for row in rows])
    rarest = [row[int(counts[row].argmin())] for row in values.split(lengths.tolist())]
    return Tags(values, lengths, torch.stack(rarest))


def _lists(column: TargetColumn) -> list[list[object]]:
    return [value for value in column.values if isinstance(value, list)]


def _name(column: TargetColumn, tag: object) -> str:
    names = column.class_names
    return names[tag] if names is not None and isinstance(tag, int) and 0 <= tag < len(names) else str(tag)


def _order(tag: str) -> tuple[bool, str, str]:
    prefix, kind = _parts(tag)
    return tag != OUTSIDE, kind, prefix


def _problems(column: TargetColumn) -> list[str]:
    what = f"{column.what}: tag column {column.name!r}"
    present = [value for value in column.values if value is not None]
    others = sorted({type(value).__name__ for value in present if not isinstance(value, list)})
    if others or not present:
        advice = '; to predict one label for a text, set `task.name` = "classification"' if others else ""
        return [f"{what} holds {listed(others) or 'no values'}, expected a list with a tag for each word{advice}"]
    empty = [row for row, value in enumerate(column.values) if not value]
    gaps = [row for row, value in enumerate(column.values) if isinstance(value, list) and None in value]
    kinds = sorted({type(tag).__name__ for row in _lists(column) for tag in row if tag is not None})
    if len(kinds) > 1 or not set(kinds) <= {"int", "str"}:
        return [f"{what} holds lists of {listed(kinds)}, expected lists of texts or of class labels"]
    broken = {"no tags": empty, "a word without a tag": gaps}
    return [f"{what} holds {kind} in {len(rows)} rows: rows {listed(rows)}" for kind, rows in broken.items() if rows]


def _notes(column: TargetColumn, names: Sequence[str]) -> tuple[str, ...]:
    plain = [name for name in names if name != OUTSIDE and _parts(name) == ("U", name)]
    if not plain:
        return ()
    return (f"tag column {column.name!r}: {listed(plain, 5)} have no prefix B- or I-: each such word is a span",)
