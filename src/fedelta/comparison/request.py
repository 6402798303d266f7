"""The request for a comparison: a configuration without its axes, and the grid."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tomli_w

from fedelta.config import Config, read_table
from fedelta.errors import ConfigError
from fedelta.grid import SEED, Axis, Grid, parse_grid
from fedelta.settings import Settings
from fedelta.settings.override import override, toml_value
from fedelta.settings.paths import table_in_full

_TASK = ("data", "partition")
_HINT = (
    'axes stand in `[compare.over]`, such as `"tuning.name" = ["head", "lora"]`, or in `--over tuning.name=head,lora`.'
)


@dataclass(frozen=True)
class Request:
    """A configuration and the grid of its variations.

    Args:
        name: of the comparison.
        table: the configuration as a TOML table without `[compare]`, unchecked.
        grid: the axes, and the search if there is one.
    """

    name: str
    table: Mapping[str, Any]  # Any: TOML values
    grid: Grid

    @property
    def searched(self) -> str | None:
        """The searched key, or None."""
        return None if self.grid.search is None else self.grid.search.key

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes except the seed; they distinguish groups."""
        return tuple(axis.name for axis in self.grid.axes if axis.name != SEED)

    @property
    def task_axes(self) -> tuple[str, ...]:
        """Names of the axes that change the data or their division, so that measures cannot be compared across them."""
        return tuple(axis.name for axis in self.grid.axes if any(key.partition(".")[0] in _TASK for key in axis.keys))

    def to_toml(self) -> str:
        """The request as TOML, with overrides applied; `read_request` reads back an equal request."""
        lines = ["[compare]", f"name = {_inline(self.name)}", "", "[compare.over]"]
        for axis in self.grid.axes:
            named = any(axis.name not in choice.values for choice in axis.choices)
            choices = {choice.label: dict(choice.values) for choice in axis.choices}
            lines.append(
                f"{_inline(axis.name)} = {_inline(choices if named else [c.values[axis.name] for c in axis.choices])}"
            )
        if (search := self.grid.search) is not None:
            # Only labels of compared methods: others would be unknown when the file is read back.
            by = next((axis.labels for axis in self.grid.axes if axis.name in search.by[:1]), ())
            values = search.values.get("") or {label: search.values[label] for label in by}
            at = {name: {choice.label: dict(choice.values)} for name, choice in search.at.items()}
            fields = {"key": search.key, "by": search.by, "at": at, "values": values}
            lines += ["", "[compare.search]", *(f"{key} = {_inline(value)}" for key, value in fields.items())]
        return f"{tomli_w.dumps(self.table)}\n" + "\n".join(lines) + "\n"


def read_request(
    config: str | Path | Config, over: Mapping[str, object] | None = None, overrides: Iterable[str] = ()
) -> Request:
    """The request in a TOML file, or for a configuration made in Python.

    Args:
        config: a file with or without a table `[compare]`, or a configuration.
        over: axes, which replace those of the same name in the file or follow them.
        overrides: `section.key=value` strings, put into the configuration before any axis.

    Raises:
        ConfigError: the file is unreadable, or axes are invalid.
    """
    is_file = isinstance(config, str | Path)
    table = read_table(config) if isinstance(config, str | Path) else _to_table(config)
    problems = override(table, overrides := list(overrides), Config)
    grid, wrong = parse_grid(table.pop("compare", {}), over)
    problems += wrong
    problems += [problem for axis in grid.axes if (problem := _unknown_axis(axis, grid)) is not None]
    problems += _without_effect(overrides, grid)
    if not grid.axes and not problems:
        problems.append("nothing is varied: there is no axis")
    origin = str(config) if is_file else "configuration"
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), origin=origin, hint=_HINT)
    name = Path(str(config)).stem if is_file else "comparison"
    return Request(grid.name or name, table_in_full(table, Config), grid)


def parse_over(texts: Iterable[str]) -> dict[str, object]:
    """The axes in texts of `--over`, such as `key=value,value`; commas in brackets, braces or quotes do not separate.

    Raises:
        ConfigError: a text has no key or an empty value, or a key occurs twice.

    >>> parse_over(['tuning.target_modules=["q","v"],["q"]', "seed=1,2"])
    {'tuning.target_modules': [['q', 'v'], ['q']], 'seed': [1, 2]}
    """
    axes: dict[str, object] = {}
    problems = []
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        parts = split_values(values)
        if not equals or not key:
            problems.append(f"`--over {text}`: expected `key=value,value`")
        elif key in axes:
            problems.append(f"`--over {text}`: `{key}` is given twice; join the values by commas")
        elif not all(parts):
            problems.append(f"`--over {text}`: value {parts.index('') + 1} is empty")
        axes[key] = [toml_value(part) for part in parts]
    if problems:
        raise ConfigError(problems, origin="the command line", hint="for example `--over tuning.name=head,bias,lora`.")
    return axes


def split_values(text: str) -> list[str]:
    """The parts of `text` between commas outside brackets, braces and quotes, without blanks around them.

    >>> split_values('"a, b",[1,2], c')
    ['"a, b"', '[1,2]', 'c']
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote and not parts[-1].endswith("\\") else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts]


def _unknown_axis(axis: Axis, grid: Grid) -> str | None:
    """The problem of an axis with an unknown section; problems inside sections are found when cells are made."""
    for key in axis.keys:
        section, dot, rest = key.partition(".")
        if section in Config.model_fields:
            continue
        others = [name for name in (other.name for other in grid.axes) if name != axis.name]
        matches = get_close_matches(section, [*Config.model_fields, *others], n=1)
        advice = f"did you mean `{matches[0]}{dot}{rest}`?" if matches else f"known: {', '.join(Config.model_fields)}"
        return f"axis `{axis.name}`: the configuration has no key `{key}`; {advice}"
    return None


def _without_effect(overrides: Iterable[str], grid: Grid) -> list[str]:
    varied = {key: f"axis `{axis.name}`" for axis in grid.axes for key in axis.keys}
    if grid.search is not None:
        varied[grid.search.key] = "the search"
    keys = {text: text.partition("=")[0].strip() for text in overrides}
    return [
        f"`--set {text}` has no effect: {varied[key]} sets `{key}` in every cell"
        for text, key in keys.items()
        if key in varied
    ]


def _to_table(config: Config) -> dict[str, Any]:
    """The fields that were set in Python, because defaults of one method must not be passed on to another."""
    return copy.deepcopy({key: _plain(getattr(config, key)) for key in sorted(config.model_fields_set)})


def _plain(value: object) -> Any:
    if isinstance(value, Settings):
        names = [name for name in type(value).model_fields if name in value.model_fields_set or name == "name"]
        return {name: _plain(getattr(value, name)) for name in names if getattr(value, name) is not None}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _inline(value: object) -> str:
    """`value` as inline TOML; nested tables would have to come last, which would change the order of the axes."""
    if isinstance(value, Mapping):
        return (
            "{ " + ", ".join(f"{_inline(key)} = {_inline(item)}" for key, item in value.items()) + " }"
            if value
            else "{}"
        )
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()
