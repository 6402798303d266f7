"""Formats quantities for tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedelta.tasks.base import Measure

MIB = 2**20
TIMES = "\N{MULTIPLICATION SIGN}"
UNKNOWN = "\N{EN DASH}"
_SPACE = "\N{NARROW NO-BREAK SPACE}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction in percent.

    >>> percent(0.9312).split()
    ['93.1', '%']
    """
    return UNKNOWN if fraction is None else f"{100 * fraction:.{digits}f}{_SPACE}%"


def shown(value: float | None, measure: Measure, digits: int = 1) -> str:
    """The value of a measure with its unit.

    Args:
        value: as in the records; None if there is none.
        measure: fractions are shown in percent, others with their unit.
        digits: decimals of a percentage.

    >>> from fedelta.tasks.base import Measure
    >>> shown(0.9312, Measure("recall", "recall", is_fraction=True)).split()
    ['93.1', '%']
    >>> shown(12.34, Measure("snr_db", "noise", unit="dB")).split(), shown(0.00123456, Measure("mae", "mean error"))
    (['12.3', 'dB'], '0.00123')
    >>> shown(123456.7, Measure("mae", "mean error")), shown(1.5e31, Measure("mae", "mean error"))
    ('123,457', '1.50e+31')
    """
    if value is None:
        return UNKNOWN
    if measure.is_fraction:
        return percent(value, digits)
    return f"{_significant(value)}{_SPACE}{measure.unit}" if measure.unit else _significant(value)


def bare(value: float | None, measure: Measure, deviation: float | None = None) -> str:
    """Like `shown`, without the unit, which is in the heading (`headed`), but with the deviation, if given.

    >>> from fedelta.tasks.base import Measure
    >>> fraction, other = Measure("recall", "recall", is_fraction=True), Measure("mae", "mean error")
    >>> bare(0.9713, fraction, 0.004), bare(0.9713, fraction), bare(1.5, other, 0.25)
    ('97.1 ± 0.4', '97.1', '1.50 ± 0.25')
    """
    if value is None:
        return UNKNOWN
    text = f"{100 * value:.1f}" if measure.is_fraction else _significant(value)
    if deviation is None:
        return text
    has_exponent, places = "e" in text, len(text.partition(".")[2])
    spread = _significant(deviation) if has_exponent else f"{in_unit(deviation, measure):,.{places}f}"
    return f"{text} \N{PLUS-MINUS SIGN} {spread}"


def _significant(value: float) -> str:
    """At least three significant digits, with an exponent if they are far from the decimal point."""
    return three_digits(value) if value == 0 or 0.01 <= abs(value) < 1e9 else f"{value:#.3g}"


def unit(measure: Measure) -> str:
    """The unit that follows the shown values of a measure; empty if there is none."""
    return "%" if measure.is_fraction else measure.unit


def in_unit(value: float, measure: Measure) -> float:
    """The value of a measure in its `unit`, for axes and columns of files."""
    return 100 * value if measure.is_fraction else value


def headed(label: str, measure: Measure) -> str:
    """The heading of a column of values of `measure`.

    >>> from fedelta.tasks.base import Measure
    >>> headed("mean over exits", Measure("recall", "recall", is_fraction=True)), headed("error", Measure("mae", ""))
    ('mean over exits, %', 'error')
    """
    return f"{label}, {unit(measure)}" if unit(measure) else label


def axis_title(label: str, measure: Measure) -> str:
    """The name of an axis of values of `measure`.

    >>> from fedelta.tasks.base import Measure
    >>> axis_title("test loss", Measure("loss_nats", "loss", unit="nats per example"))
    'Test loss (nats per example)'
    """
    return f"{capitalised(label)} ({unit(measure)})" if unit(measure) else capitalised(label)


def capitalised(text: str) -> str:
    """`text` with a capital first letter; unlike `str.capitalize` it does not change the rest.

    >>> capitalised("macro F1")
    'Macro F1'
    """
    return text[:1].upper() + text[1:]


def size(num_bytes: float | None) -> str:
    """Bytes in MiB with the unit, the one form of an amount of bytes in texts; what is below 1 KiB in bytes.

    >>> [size(n).split() for n in (900, 98_304, 2**20, 1_500 * 2**20)]
    [['900', 'B'], ['0.0938', 'MiB'], ['1.00', 'MiB'], ['1,500', 'MiB']]
    """
    if num_bytes is None:
        return UNKNOWN
    return f"{num_bytes:.0f}{_SPACE}B" if num_bytes < 1024 else f"{mebibytes(num_bytes)}{_SPACE}MiB"


def times(ratio: float) -> str:
    """A ratio such as 137 times.

    >>> [times(ratio)[:-2] for ratio in (137.2, 1.58)]
    ['137', '1.6']
    """
    return f"{ratio:,.0f}{_SPACE}{TIMES}" if ratio >= 10 else f"{ratio:.1f}{_SPACE}{TIMES}"


def mebibytes(num_bytes: float | None) -> str:
    """Bytes in MiB, for columns of comparable numbers.

    >>> mebibytes(5 * 2**20), mebibytes(52_429)
    ('5.00', '0.0500')
    """
    return UNKNOWN if num_bytes is None else three_digits(num_bytes / MIB)


def three_digits(value: float) -> str:
    """At least three significant digits, no exponent.

    >>> [three_digits(x) for x in (0, 0.0012345, 0.01234, 1.234, 12.34, 123.4, 12345.6, math.nan, math.inf)]
    ['0', '0.00123', '0.0123', '1.23', '12.3', '123', '12,346', 'nan', 'inf']
    """
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def count(number: int | None) -> str:
    """A whole number with separators.

    >>> count(1234567)
    '1,234,567'
    """
    return UNKNOWN if number is None else f"{number:,}"


def duration(seconds: float | None) -> str:
    """Seconds as seconds, minutes or hours.

    >>> [duration(seconds).replace(_SPACE, "_") for seconds in (4.25, 95, 8000)]
    ['4.2_s', '1_min 35_s', '2_h 13_min']
    """
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f}{_SPACE}s"
    if seconds < 3600:
        return f"{int(seconds // 60)}{_SPACE}min {int(seconds % 60)}{_SPACE}s"
    return f"{int(seconds // 3600)}{_SPACE}h {int(seconds % 3600 // 60)}{_SPACE}min"
