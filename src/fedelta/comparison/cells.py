"""The cells of a grid; every configuration is made and checked before training starts.

A *cell* is one configuration of the grid with one seed; a *trial* is a run of the search, with one seed, measured on
the clients' validation rows.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from fedelta.comparison.columns import reserved
from fedelta.comparison.request import Request
from fedelta.config import Config, parse_config
from fedelta.errors import ConfigError
from fedelta.grid import Axis, Choice, Search, label_of
from fedelta.settings.override import with_values
from fedelta.tasks.base import Measure

Point = Mapping[str, Choice]  # axis name to one of its choices

_MAX_SLUG = 100  # file systems take 255 bytes a name; the run directory's temporary name is longer
_TRIAL = "search: "
_ON_VALIDATION = {"data.evaluate_on": "validation"}


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        labels: axis name to the label of its value, in the order of the axes.
        value: of the searched key; None without a search.
        config: of the run, with paths in full.
        key: the searched key, or None.
        is_trial: whether it is part of the search.
    """

    labels: Mapping[str, str]
    value: object
    config: Config
    key: str | None = None
    is_trial: bool = False

    @property
    def name(self) -> str:
        """Its name in messages, such as `tuning.name=head, seed=1`."""
        return name_of(self.labels, self.key, self.value, is_trial=self.is_trial)

    @property
    def slug(self) -> str:
        """A name for its directory, such as `head-seed-1`; not unique (see `slugs`)."""
        named = _named(self.labels, self.key, self.value)
        parts = (label if is_word(label) else f"{name.rpartition('.')[2]}-{label}" for name, label in named.items())
        slug = re.sub(r"[^\w.+-]+", "-", "-".join(parts), flags=re.ASCII)
        slug = re.sub(r"-{2,}", "-", slug).strip("-.") or "cell"
        return slug if len(slug) <= _MAX_SLUG else f"{slug[: _MAX_SLUG - 9]}-{self._digest}"

    @property
    def unique_slug(self) -> str:
        """The slug, followed by a digest that makes it unique."""
        return f"{self.slug}-{self._digest}"

    @property
    def _digest(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Plan:
    """All trials and cells of a comparison; every configuration has been checked.

    Args:
        request: the configuration and the grid.
        trials: of the search, in its order; empty without one.
        num_rounds: name of each cell, without the searched value, to its rounds; the first axis varies slowest.
        primary: the measure that all cells share.
    """

    request: Request
    trials: tuple[Cell, ...]
    num_rounds: Mapping[str, int]
    primary: Measure

    @property
    def points(self) -> list[dict[str, str]]:
        """The labels of every cell, in the order of the grid."""
        return [_labels(point) for point in _points(self.request.grid.axes)]

    def cells(self, chosen: Mapping[tuple[str, ...], object]) -> list[Cell]:
        """The cells in the order of the grid; those for which no value is chosen are left out.

        Args:
            chosen: result of `by_labels` to the best value of the searched key; {(): None} without a search.
        """
        search = self.request.grid.search
        points = [(point, by_labels(search, _labels(point))) for point in _points(self.request.grid.axes)]
        return [_cell(self.request, point, chosen[by]) for point, by in points if by in chosen]


def make_plan(request: Request) -> Plan:
    """All cells of a request.

    Raises:
        ConfigError: a configuration is wrong, or two cells are the same; each problem once, with its cells.
    """
    axes, search = request.grid.axes, request.grid.search
    problems: dict[str, list[str]] = {}
    num_cells = 0
    seen: dict[str, str] = {}
    num_rounds: dict[str, int] = {}
    measures: dict[Measure, str] = {}
    taken: set[str | None] = {request.searched}
    for point, value in _variants(search, _points(axes)):
        num_cells += 1
        cell = _try(problems, request, point, value)
        if cell is None:
            continue
        measures.setdefault(cell.config.task.primary, cell.name)
        taken |= reserved(cell.config.task)
        num_rounds[name_of(cell.labels)] = cell.config.strategy.num_rounds
        if (first_name := seen.setdefault(cell.config.to_toml(), cell.name)) != cell.name:
            problems[f"two cells are the same configuration: {first_name!r} and {cell.name!r}"] = []
    trials = [
        _try(problems, request, point, value, is_trial=True)
        for point, value in _variants(search, _trial_points(search, axes))
    ]
    if len(measures) > 1:
        by_name = ", ".join(f"{measure.name} in {name!r}" for measure, name in measures.items())
        problems[f"cells are judged by different measures, {by_name}; compare those of one measure at a time"] = []
    problems |= {problem: [] for problem in _doubled_columns(request, taken)}
    if problems:
        texts = [f"{problem}{_where(names, num_cells)}" for problem, names in problems.items()]
        raise ConfigError(texts, origin=request.name, hint="`fedelta list` names what can be chosen.")
    return Plan(request, tuple(trial for trial in trials if trial is not None), num_rounds, next(iter(measures)))


def name_of(labels: Mapping[str, str], key: str | None = None, value: object = None, *, is_trial: bool = False) -> str:
    """The name of a cell in messages."""
    return (_TRIAL if is_trial else "") + ", ".join(
        f"{name}={label}" for name, label in _named(labels, key, value).items()
    )


def is_word(label: str) -> bool:
    """Whether a label is clear without its key; numbers, truth values and lists are not."""
    try:
        float(label)
    except ValueError:
        return label not in ("true", "false", "null") and not label.startswith(("[", "{"))
    return False


def by_labels(search: Search | None, labels: Mapping[str, str]) -> tuple[str, ...]:
    """The labels of the axes in `compare.search.by`; cells with equal labels share the value of the searched key."""
    return () if search is None else tuple(labels[name] for name in search.by)


def slugs(cells: Sequence[Cell]) -> dict[str, str]:
    """Name of each cell to its directory; no two directories differ only in case, for file systems that ignore case."""
    counts = Counter(cell.slug.lower() for cell in cells)
    return {cell.name: cell.slug if counts[cell.slug.lower()] == 1 else cell.unique_slug for cell in cells}


def _points(axes: Sequence[Axis]) -> Iterator[Point]:
    for choices in product(*(axis.choices for axis in axes)):
        yield {axis.name: choice for axis, choice in zip(axes, choices, strict=True)}


def _trial_points(search: Search | None, axes: Sequence[Axis]) -> Iterator[Point]:
    """The points of the search, in which only the axes of `compare.search.by` vary."""
    if search is None:
        return
    yield from _points([axis if axis.name in search.by else _stay(search, axis) for axis in axes])


def _stay(search: Search, axis: Axis) -> Axis:
    """An axis with only the choice that it keeps during the search."""
    return Axis(axis.name, (search.at.get(axis.name, axis.choices[0]),))


def _variants(search: Search | None, points: Iterable[Point]) -> Iterator[tuple[Point, object]]:
    """Each point with each candidate of the searched key, or with None if there is no search."""
    for point in points:
        for value in (None,) if search is None else search.candidates(_labels(point)):
            yield point, value


def _cell(request: Request, point: Point, value: object, *, is_trial: bool = False) -> Cell:
    values = {key: value for choice in point.values() for key, value in choice.values.items()}
    if request.searched is not None:
        values[request.searched] = value
    table, problems = with_values(dict(request.table), values, Config)
    if problems:
        raise ConfigError(problems)
    if is_trial:
        table, _ = with_values(table, _ON_VALIDATION, Config)
    return Cell(_labels(point), value, parse_config(table), request.searched, is_trial)


def _try(
    problems: dict[str, list[str]], request: Request, point: Point, value: object, *, is_trial: bool = False
) -> Cell | None:
    """The cell, or None; adds its name to `problems` under the text of each problem."""
    try:
        return _cell(request, point, value, is_trial=is_trial)
    except ConfigError as error:
        name = name_of(_labels(point), request.searched, value, is_trial=is_trial)
        for problem in error.problems:
            problems.setdefault(problem, []).append(name)
        return None


def _where(names: Sequence[str], num_cells: int) -> str:
    """The end of a message that names the cells with a problem."""
    if not names:
        return ""
    if len([name for name in names if not name.startswith(_TRIAL)]) == num_cells:
        return " (in every cell)"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f" (in {names[0]!r}{more})"


def _doubled_columns(request: Request, taken: Container[str | None]) -> list[str]:
    """Messages about axes with one of the names that are `taken` by another column of the tables."""
    return [
        f"axis `{axis.name}` has the name of another column of the tables; rename it"
        for axis in request.grid.axes
        if axis.name in taken
    ]


def _labels(point: Point) -> dict[str, str]:
    return {name: choice.label for name, choice in point.items()}


def _named(labels: Mapping[str, str], key: str | None, value: object) -> dict[str, str]:
    return dict(labels) if key is None else {**labels, key: label_of(value)}
