"""Formats quantities for tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedelta.tasks.base import Measure

KIB, MIB, GIB = 2**10, 2**20, 2**30
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
    """At least three significant digits, of errors near zero too."""
    return three_digits(value) if value == 0 or abs(value) >= 0.01 else f"{value:#.3g}"


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
    """Bytes in a suitable binary unit, with three digits.

    >>> [size(n).split() for n in (900, 98_304, 2**20, 1_500 * 2**20)]
    [['900', 'B'], ['96.0', 'KiB'], ['1.00', 'MiB'], ['1.46', 'GiB']]
    """
    if num_bytes is None:
        return UNKNOWN
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if num_bytes >= unit:
            return f"{three_digits(num_bytes / unit)}{_SPACE}{name}"
    return f"{num_bytes:.0f}{_SPACE}B"


def mebibytes(num_bytes: float | None) -> str:
    """Bytes in MiB, for columns of comparable numbers.

    >>> mebibytes(5 * 2**20), mebibytes(52_429)
    ('5.00', '0.0500')
    """
    return UNKNOWN if num_bytes is None else three_digits(num_bytes / MIB)


def three_digits(value: float) -> str:
    """At least three significant digits, no exponent.

    >>> [three_digits(x) for x in (0, 0.01234, 1.234, 12.34, 123.4, 12345.6)]
    ['0', '0.0123', '1.23', '12.3', '123', '12,346']
    """
    if value == 0:
        return "0"
    digits = next((digits for bound, digits in ((100, 0), (10, 1), (1, 2), (0.1, 3)) if abs(value) >= bound), 4)
    return f"{value:,.{digits}f}"


def count(number: int | None) -> str:
    """A whole number with separators.

    >>> count(1234567)
    '1,234,567'
    """
    return UNKNOWN if number is None else f"{number:,}"


def duration(seconds: float | None) -> str:
    """Seconds as seconds, minutes or hours.

    >>> duration(4.25), duration(95), duration(8000)
    ('4.2 s', '1 min 35 s', '2 h 13 min')
    """
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
