"""The tables of a comparison: CSV for programs, Markdown for pull requests, LaTeX for papers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pandas import DataFrame

from fedelta.comparison.columns import (
    COSTS,
    EPSILON,
    IS_BEST,
    IS_CLEAR,
    NUM_SEEDS,
    ON_FRONT,
    REASON,
    RELATIVE_COST,
    RUN,
    STATE,
    Column,
)
from fedelta.comparison.frames import one_line
from fedelta.comparison.result import Comparison, Pivot, Record, mean_and_deviation, pivot, records
from fedelta.grid import label_of
from fedelta.record.neutral import cell, latex, line, markdown
from fedelta.record.numbers import UNKNOWN, capitalised, unit

_NOTE = (
    "{measure} after the last round, on the test set unless `data.evaluate_on` says otherwise: mean ± sample "
    "standard deviation over the seeds. MiB per client and round are those down and up together. Time is that of the "
    "rounds, with one arithmetic thread, and for orientation only: it is measured beside other cells, of which as many "
    "run side by side as the machine has cores, or one on each GPU, unless told otherwise. Front: no other row of the "
    "same task has as good a mean for fewer MiB in total, or a better one for as many; within noise: the 95 % interval "
    "of the difference, taken seed by seed, does not tell it from a row that sends no more. One seed tells nothing."
)
_EPSILON_NOTE = (
    "Epsilon is that of one run, by itself, after its last round; of several seeds the largest. A row without it "
    "guarantees nothing. Runs on the same data, those of a search too, add up."
)
BEST_IN_WORDS = (
    "the best of its column and what its 95 % interval, over differences seed by seed, does not tell from it; nothing "
    "where that is all"
)
_PIVOT_NOTE = (
    f"{{measure}} after the last round: mean ± sample standard deviation over the seeds. Bold: {BEST_IN_WORDS}."
)
# A mean with its deviation, as written by `bare`; an exponent becomes a power of ten.
_SPREAD = re.compile(r"^(-?[\d.,]+(?:e[+-]\d+)?) ± ([\d.,]+(?:e[+-]\d+)?)")
_EXPONENT = re.compile(r"e([+-])0*(\d+)")


@dataclass(frozen=True)
class GroupTable:
    """The groups as texts for people.

    Args:
        header: name of each column.
        short: shorter names for a terminal.
        rows: the texts of each group.
        num_labels: number of columns before the figures.
    """

    header: tuple[str, ...]
    short: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_labels: int


@dataclass(frozen=True)
class Field:
    """A column of a CSV file.

    Args:
        header: its name there.
        name: in the frame.
        text: formats a value, which may be None.
    """

    header: str
    name: str
    text: Callable[[Any], str]  # Any: a value of the frame


_STATE = Field(STATE, STATE, str)
_REASON = Field(REASON, REASON, one_line)


def group_table(comparison: Comparison) -> GroupTable:
    """The groups of a comparison with all figures; relative cost and epsilon only where they say something."""
    labels, groups = _labels(comparison), records(comparison.groups)
    key, (primary, *others) = comparison.searched, comparison.measures
    cheaper = any((group[RELATIVE_COST] or 1) < 1 for group in groups)
    costs = [column for column in _costs(comparison.frame) if cheaper or column.name != RELATIVE_COST]
    figures = [primary, *others, *costs]
    place = len(labels) + 1 + len(others)
    header, short = (
        [*labels, *names] for names in zip(*((column.heading, column.short) for column in figures), strict=True)
    )
    rows = [
        [
            *(group[name] for name in comparison.axes),
            *([] if key is None else [UNKNOWN if group[key] is None else label_of(group[key])]),
            mean_and_deviation(group, comparison),
            *(_text(column, group) for column in others),
            str(group[NUM_SEEDS]),
            *(_text(column, group) for column in costs),
            ("front" if group[IS_CLEAR] else "within noise") if group[ON_FRONT] else "",
        ]
        for group in groups
    ]
    return GroupTable(
        (*header[:place], "seeds", *header[place:], "front"),
        (*short[:place], "seeds", *short[place:], ""),
        tuple(map(tuple, rows)),
        len(labels),
    )


def note(comparison: Comparison) -> str:
    """The note below the table of the groups."""
    text = _NOTE.format(measure=primary_in_words(comparison))
    return f"{text} {_EPSILON_NOTE}" if comparison.frame[EPSILON].notna().any() else text


def table_csv(comparison: Comparison) -> str:
    """CSV with one row per group; plain numbers, empty for missing ones."""
    measures = [_figure(column, name) for column in comparison.measures for name in column.in_groups]
    costs = [_figure(column, name) for column in _costs(comparison.frame) for name in column.in_groups]
    fields = [*_keys(comparison, comparison.axes), *measures, Field(NUM_SEEDS, NUM_SEEDS, str), *costs]
    return to_csv(
        comparison.groups,
        [
            *fields,
            Field(ON_FRONT, ON_FRONT, _truth),
            Field(IS_CLEAR, IS_CLEAR, _truth),
            _STATE,
            Field(REASON, REASON, lambda text: text or ""),
        ],
    )


def cells_csv(comparison: Comparison) -> str:
    """CSV with one row per cell."""
    figures = [_figure(column, column.name) for column in (*comparison.measures, *_costs(comparison.frame))]
    fields = [*_keys(comparison, comparison.cell_axes), *figures, _STATE, _REASON, Field(RUN, RUN, str)]
    return to_csv(comparison.frame, fields)


def search_csv(comparison: Comparison) -> str:
    """CSV with one row per trial of the search."""
    primary, *others = comparison.measures
    on_validation = replace(_figure(primary, primary.name), header=primary.file.format(f"validation_{primary.name}"))
    figures = [on_validation, *(_figure(column, column.name) for column in (*others, *_costs(comparison.trials)))]
    fields = [*_keys(comparison, comparison.cell_axes), *figures, Field(IS_BEST, IS_BEST, _truth), _STATE, _REASON]
    return to_csv(comparison.trials, [*fields, Field(RUN, RUN, str)])


def to_csv(frame: DataFrame, fields: Sequence[Field]) -> str:
    """The columns of a frame as CSV; texts that a spreadsheet would run as formulas are escaped."""
    rows = [[cell(field.text(row[field.name])) for field in fields] for row in records(frame)]
    return DataFrame(rows, columns=[cell(field.header) for field in fields], dtype=object).to_csv(
        index=False, lineterminator="\n"
    )


def table_md(comparison: Comparison) -> str:
    """Markdown with the table of the groups, the pivot if there are two axes or more, and the failures."""
    table = group_table(comparison)
    parts = [
        f"# {markdown(comparison.name)}",
        _markdown(table.header, [map(markdown, row) for row in table.rows], numbers_from=table.num_labels),
        note(comparison),
    ]
    if (by_axis := pivot(comparison)) is not None:
        parts.append(_markdown(by_axis.header, _strong(by_axis, markdown, "**{}**"), numbers_from=1))
    if comparison.failures:
        parts += [
            "## Failed",
            "\n".join(f"- {markdown(name)}: {markdown(one_line(text))}" for name, text in comparison.failures.items()),
        ]
    return "\n\n".join(parts) + "\n"


def table_tex(comparison: Comparison) -> str:
    """LaTeX with the table of the groups and the pivot, for a document with the package booktabs."""
    table = group_table(comparison)
    rows = [[_latex_number(text) for text in row] for row in table.rows]
    parts = [
        f"% {line(comparison.name)}: \\input this file in a document with \\usepackage{{booktabs}}.\n",
        _latex(table.header, rows, table.num_labels, note(comparison), f"{_slug(comparison.name)}-groups"),
    ]
    if (by_axis := pivot(comparison)) is not None:
        text = _PIVOT_NOTE.format(measure=primary_in_words(comparison))
        rows = _strong(by_axis, _latex_number, "\\textbf{{\\boldmath {}}}")
        parts.append(_latex(by_axis.header, rows, 1, text, f"{_slug(comparison.name)}-pivot"))
    return "\n".join(parts)


def primary_in_words(comparison: Comparison) -> str:
    """The primary measure with its unit, capitalised."""
    name, in_what = capitalised(comparison.primary.label), unit(comparison.primary)
    return f"{name} in {in_what}" if in_what else name


def _costs(frame: DataFrame) -> list[Column]:
    """The columns after the measures; epsilon only where some run has it."""
    return [column for column in COSTS if column.name != EPSILON or frame[EPSILON].notna().any()]


def _labels(comparison: Comparison) -> list[str]:
    """Names of the columns before the figures, in tables of groups."""
    return [*comparison.axes, *([] if comparison.searched is None else [comparison.searched])]


def _keys(comparison: Comparison, axes: Sequence[str]) -> list[Field]:
    """The fields before the figures in CSV files."""
    fields = [Field(name, name, str) for name in axes]
    key = comparison.searched
    return fields if key is None else [*fields, Field(key, key, lambda value: "" if value is None else label_of(value))]


def _figure(column: Column, name: str) -> Field:
    return Field(column.file.format(name), name, column.number)


def _text(column: Column, group: Record) -> str:
    mean, *deviation = (group[name] for name in column.in_groups)
    return column.text(mean, deviation[0] if deviation else None)


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _strong(table: Pivot, escape: Callable[[str], str], strong: str) -> list[list[str]]:
    """The rows of a pivot; the template `strong` marks the best of each column."""
    return [
        [
            strong.format(escape(text)) if (row, column) in table.best else escape(text)
            for column, text in enumerate(texts)
        ]
        for row, texts in enumerate(table.rows)
    ]


def _markdown(header: Sequence[str], rows: Iterable[Iterable[str]], *, numbers_from: int) -> str:
    """A Markdown table; `rows` are Markdown, the header is plain text."""
    rule = ["---" if column < numbers_from else "--:" for column in range(len(header))]
    lines = [map(markdown, header), rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _latex(header: Sequence[str], rows: Sequence[Sequence[str]], num_labels: int, caption: str, label: str) -> str:
    """A booktabs table; `rows` are LaTeX, header and caption are plain text with code in backticks."""
    words = [latex(part) for part in caption.split("`")]
    words[1::2] = [f"\\texttt{{{code}}}" for code in words[1::2]]
    return (
        DataFrame(rows, columns=[latex(name) for name in header])
        .style.hide(axis="index")
        .to_latex(
            column_format="l" * num_labels + "r" * (len(header) - num_labels),
            position_float="centering",
            hrules=True,
            caption="".join(words),
            label=f"tab:{label}",
        )
    )


def _latex_number(text: str) -> str:
    r"""A text in LaTeX; a mean with its deviation becomes a formula.

    >>> print(_latex_number("1,234 ± 5 (1 of 2)"), _latex_number("1.20e-05 ± 3.00e-07"), _latex_number("8 % of_64"))
    $1{,}234 \pm 5$ (1 of 2) $1.20 \times 10^{-5} \pm 3.00 \times 10^{-7}$ 8 \% of\_64
    """
    if (spread := _SPREAD.match(text)) is None:
        return latex(text)
    formula = " \\pm ".join(_EXPONENT.sub(_power, part).replace(",", "{,}") for part in spread.groups())
    return f"${formula}${latex(text[spread.end() :])}"


def _power(exponent: re.Match[str]) -> str:
    sign, digits = exponent.groups()
    return f" \\times 10^{{{sign.replace('+', '')}{digits}}}"


def _slug(name: str) -> str:
    """`name` as a LaTeX label, reduced to letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "comparison"
