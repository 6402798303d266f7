"""The `[compare]` table of a configuration: the axes of a grid of experiments, and the key that is searched.

    [compare]
    name = "methods"                        # optional: what tables and page are called
    [compare.over]                          # axes in order, a list of values for a key of the configuration ...
    "tuning.name" = ["head", "lora"]
    seed = [1, 42, 3407]                    # the axis over which mean and deviation are taken
    [compare.over.setting]                  # ... or a table of named choices, each of which sets several keys
    "16 of 16, IID" = { "partition.name" = "iid", "partition.num_clients" = 16 }
    [compare.search]                        # optional
    key = "client.lr"
    by = ["tuning.name"]                    # its best value is found for each value of these axes
    at = { setting = "16 of 16, IID" }      # the other axes stay at their first value, or here
    values = { head = [0.005, 0.05], lora = [0.01, 0.1] }   # by values of the first axis in `by`, or one list for all

Whether each cell of the grid is a valid configuration is checked in comparison/cells.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

SEED = "seed"
_KEYS = ("name", "over", "search")
_SEARCH_KEYS = ("key", "by", "at", "values")


@dataclass(frozen=True)
class Choice:
    """A value of an axis.

    Args:
        label: its name in tables; unique within the axis.
        values: dotted keys of the configuration to their values.
    """

    label: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Axis:
    """A key, or a set of keys, that is varied.

    Args:
        name: a key of the configuration, or a name for several keys.
        choices: in order; at least one.
    """

    name: str
    choices: tuple[Choice, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of its choices."""
        return tuple(choice.label for choice in self.choices)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the configuration that it sets, each once."""
        return tuple(dict.fromkeys(key for choice in self.choices for key in choice.values))


@dataclass(frozen=True)
class Search:
    """A key whose best value is searched before the grid is run.

    Args:
        key: of the configuration.
        by: names of axes; there is one search for every combination of their values.
        at: axis name to the choice that it keeps during the search, which need not be compared.
        values: label of the first axis in `by` to the candidates; the empty label stands for all other labels.
    """

    key: str
    by: tuple[str, ...]
    at: Mapping[str, Choice]
    values: Mapping[str, tuple[object, ...]]

    def candidates(self, labels: Mapping[str, str]) -> tuple[object, ...]:
        """The values to try for these labels of the axes."""
        return self.values.get(labels[self.by[0]] if self.by else "", self.values.get("", ()))


@dataclass(frozen=True)
class Grid:
    """The axes of a comparison, and its search.

    Args:
        axes: the first varies slowest.
        search: runs before the grid; None without one.
        name: of the comparison; None: the name of its file.
    """

    axes: tuple[Axis, ...] = ()
    search: Search | None = None
    name: str | None = None


def label_of(value: object) -> str:
    """The label of a value in tables.

    >>> label_of("lora"), label_of(0.1), label_of(["q", "v"])
    ('lora', '0.1', '["q", "v"]')
    """
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def parse_grid(table: object, over: Mapping[str, object] | None = None) -> tuple[Grid, list[str]]:
    """The grid in a `[compare]` table, and its problems.

    Args:
        table: the table as TOML holds it.
        over: further axes. An axis replaces the axis of the same name; a list that replaces named choices picks some of
            them.
    """
    if not isinstance(table, Mapping):
        return Grid(), [f"`compare` is {table!r}, expected a table"]
    problems = [f"`compare.{key}` is unknown; {_nearest(key, _KEYS)}" for key in table if key not in _KEYS]
    name, over_table = table.get("name"), table.get("over", {})
    if not isinstance(name, str | None):
        problems.append(f"`compare.name` is {name!r}, expected a text")
        name = None
    if not isinstance(over_table, Mapping):
        return Grid(), [*problems, f"`compare.over` is {over_table!r}, expected a table of axes"]
    replaced = {name: _pick(name, over_table.get(name), raw, problems) for name, raw in (over or {}).items()}
    axes = tuple(_axis(name, raw, problems) for name, raw in {**over_table, **replaced}.items())
    problems += _set_twice(axes)
    if "search" not in table:
        return Grid(axes, None, name), problems
    # A search may list candidates for methods that are not compared this time.
    file_axes = [_axis(name, raw, []) for name, raw in over_table.items()]
    search, wrong = _search(table["search"], axes, file_axes)
    return Grid(axes, search, name), problems + wrong


def _pick(name: str, before: object, raw: object, problems: list[str]) -> object:
    """The named choices in `before` that `raw` lists; `raw` itself if `before` has no named choices."""
    if not isinstance(before, Mapping) or not isinstance(raw, list | tuple):
        return raw
    labels = _joined([label_of(value) for value in raw], before)
    unknown = [label for label in labels if label not in before]
    problems += [f"axis `{name}` has no choice {label!r}; {_nearest(label, before)}" for label in unknown]
    problems += [f"axis `{name}` holds {label!r} twice" for label in _repeated(labels)]
    return {label: before[label] for label in labels if label in before} or before


def _joined(labels: list[str], known: Mapping[str, object]) -> list[str]:
    """Labels made of pieces that were split at commas, because labels may contain commas.

    >>> _joined(["8 of 64", "IID", "LoRA"], {"8 of 64, IID": {}, "LoRA": {}})
    ['8 of 64, IID', 'LoRA']
    """
    joined: list[str] = []
    while labels:
        lengths = range(len(labels), 0, -1)
        length = next((number for number in lengths if ", ".join(labels[:number]) in known), 1)
        joined.append(", ".join(labels[:length]))
        labels = labels[length:]
    return joined


def _axis(name: str, raw: object, problems: list[str]) -> Axis:
    if isinstance(raw, Mapping):
        wrong = [label for label, values in raw.items() if not isinstance(values, Mapping) or not values]
        choices = [Choice(label, values) for label, values in raw.items() if label not in wrong]
        problems += [
            f"choice {label!r} of axis `{name}` is {raw[label]!r}, expected a table of keys and values"
            for label in wrong
        ]
    elif isinstance(raw, list | tuple):
        choices = [Choice(label_of(value), {name: value}) for value in raw]
        problems += [f"axis `{name}` holds {label!r} twice" for label in _repeated(choice.label for choice in choices)]
        if None in raw:
            problems.append(f"axis `{name}` holds an empty value")
    else:
        problems.append(f"axis `{name}` is {raw!r}, expected a list of values or a table of named choices")
        return Axis(name, ())
    if not raw:
        problems.append(f"axis `{name}` is empty, expected at least one value")
    return Axis(name, tuple(choices))


def _set_twice(axes: Iterable[Axis]) -> list[str]:
    """Messages about keys that two axes set, wholly or in part, and about seeds inside another axis."""
    problems: list[str] = []
    setter: dict[str, str] = {}
    for axis in axes:
        for key in axis.keys:
            if key == SEED and axis.name != SEED:
                problems.append(f"axis `{axis.name}` sets `seed`, which has to be a separate axis: `seed = [1, 2]`")
            first_axis = next((name for set_key, name in setter.items() if _overlap(set_key, key)), None)
            if first_axis is not None:
                problems.append(f"axes `{first_axis}` and `{axis.name}` both set `{key}`")
        setter |= dict.fromkeys(axis.keys, axis.name)
    return problems


def _search(raw: object, axes: tuple[Axis, ...], known: Iterable[Axis]) -> tuple[Search | None, list[str]]:
    if not isinstance(raw, Mapping):
        return None, [f"`compare.search` is {raw!r}, expected a table"]
    problems = [
        f"`compare.search.{key}` is unknown; {_nearest(key, _SEARCH_KEYS)}" for key in raw if key not in _SEARCH_KEYS
    ]
    problems += [f"`compare.search.{key}` is missing" for key in ("key", "values") if key not in raw]
    key, by, at = raw.get("key"), raw.get("by", []), raw.get("at", {})
    if not isinstance(key, str | None):
        problems.append(f"`compare.search.key` is {key!r}, expected a key of the configuration")
    if not isinstance(by, list | tuple) or not all(isinstance(name, str) for name in by):
        problems.append(f"`compare.search.by` is {by!r}, expected a list of axes")
    if not isinstance(at, Mapping):
        problems.append(f"`compare.search.at` is {at!r}, expected a table of axes and their values")
    if problems or not isinstance(key, str) or not isinstance(at, Mapping):
        return None, problems
    problems += [f"axis `{axis.name}` sets `{key}`, which is searched" for axis in axes if _sets(axis, key)]
    problems += _check_by(by, axes)
    stays = _at(at, by, [*known, *axes], problems)
    if problems:
        return None, problems
    values = _search_values(raw["values"], by, [*axes, *known], problems)
    if by and isinstance(raw["values"], Mapping):
        first = next(axis for axis in axes if axis.name == by[0])
        problems += [f"`compare.search.values` has none for {label!r}" for label in first.labels if label not in values]
    return Search(key, tuple(by), stays, values), problems


def _check_by(by: Iterable[str], axes: Iterable[Axis]) -> list[str]:
    names = [axis.name for axis in axes]
    problems = [
        f"`compare.search.by` names {name!r}, which is no axis; {_nearest(name, names)}"
        for name in by
        if name not in names
    ]
    if SEED in by:
        problems.append("`compare.search.by` names the seeds: the search is done at one of them")
    return problems


def _at(at: Mapping[str, object], by: Iterable[str], axes: Iterable[Axis], problems: list[str]) -> dict[str, Choice]:
    """Axis name to the choice that it keeps during the search; appends to `problems`.

    Args:
        at: axis name to a value or a label of the axis, or to a table with one new choice.
        by: axes of the search.
        axes: those of the file and those that are compared; an axis may be in both, with other choices.
        problems: messages; changed.
    """
    choices: dict[str, dict[str, Choice]] = {}
    for axis in axes:
        choices.setdefault(axis.name, {}).update({choice.label: choice for choice in axis.choices})
    stays: dict[str, Choice] = {}
    for name, value in at.items():
        where = f"`compare.search.at` names {name!r}"
        if name not in choices:
            problems.append(f"{where}, which is no axis; {_nearest(name, choices)}")
        elif name in by:
            problems.append(f"{where}, which is also in `by`")
        elif isinstance(value, Mapping):
            new = _axis(name, value, problems).choices
            if len(new) == 1:
                stays[name] = new[0]
            else:
                problems.append(f"{where} = {value!r}, expected one choice")
        elif (label := label_of(value)) in choices[name]:
            stays[name] = choices[name][label]
        else:
            nearest = _nearest(label, choices[name])
            problems.append(f"{where} = {label!r}, which that axis does not hold; {nearest}")
    return stays


def _search_values(
    raw: object, by: list[str], axes: Iterable[Axis], problems: list[str]
) -> dict[str, tuple[object, ...]]:
    tables = raw if isinstance(raw, Mapping) else {"": raw}
    labels = [label for axis in axes if by and axis.name == by[0] for label in axis.labels]
    for label, values in tables.items():
        where = f"`compare.search.values`{f' for {label!r}' if label else ''}"
        if isinstance(raw, Mapping) and label not in labels:
            no_axis = "which is no value of the first axis in `by`"
            problems.append(f"`compare.search.values` names {label!r}, {no_axis}; {_nearest(label, labels)}")
        elif not isinstance(values, list | tuple) or not values:
            problems.append(f"{where} is {values!r}, expected a list with at least one value")
        else:
            problems += [f"{where} holds {twice} twice" for twice in _repeated(map(label_of, values))]
    return {label: tuple(values) for label, values in tables.items() if isinstance(values, list | tuple)}


def _sets(axis: Axis, key: str) -> bool:
    return any(_overlap(axis_key, key) for axis_key in axis.keys)


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _repeated(labels: Iterable[str]) -> list[str]:
    labels = list(labels)
    return [label for label in dict.fromkeys(labels) if labels.count(label) > 1]


def _nearest(name: str, names: Iterable[str]) -> str:
    """Advice for an unknown name: the most similar name, or all names."""
    names = list(names)
    matches = get_close_matches(name, names, n=1)
    return f"did you mean {matches[0]!r}?" if matches else f"known: {', '.join(names) or 'none'}"
