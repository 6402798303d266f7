"""What a site tells its server about an error: no path, and nothing that may be a value in the data."""

from __future__ import annotations

import re
from collections.abc import Collection

from fedelta.errors import ClassesError, DataError, FedeltaError
from fedelta.runtimes.remote.messages import REFUSED, Message

_LONGEST = 2000
_HIDDEN = "…"
# A quote after a letter is an apostrophe.
_QUOTED = re.compile(r"""(?<!\w)(['"])(.*?)\1(?!\w)""", re.DOTALL)
_NUMBER = re.compile(r"(?<!\w)-?\d[\d.,]*(?:e[+-]?\d+)?(?!\w)")
_PATH = re.compile(r"""(?<![\w.:/<])(?:~|\.{1,2})?/[^\s'"`,;:)]+""")


def refusal(error: FedeltaError, known: Collection[str] = (), *, hides_numbers: bool = False) -> Message:
    """The answer for a message that cannot be followed.

    Args:
        error: why not; its full text belongs in the site's log.
        known: texts that the server knows, or that are no data, such as names of columns in the site's settings.
        hides_numbers: whether numbers in errors of the data are left out too.
    """
    reason, hint = told(error, known, hides_numbers=hides_numbers)
    return Message(REFUSED, {"reason": reason, "hint": hint})


def told(error: FedeltaError, known: Collection[str] = (), *, hides_numbers: bool = False) -> tuple[str, str]:
    """Message and hint of an error without paths; for one in the data also without quoted texts that are not known.

    With `hides_numbers` an error in the data has no numbers either.

    >>> told(DataError("no column 'age' in '/data/x.csv', the columns are 'label', 'name'"), ["age"])
    ("no column 'age' in '…', the columns are '…', '…'", '')
    """
    is_private = isinstance(error, DataError) and not isinstance(error, ClassesError)

    def shown(match: re.Match[str]) -> str:
        quote, text = match[1], match[2]
        hide = text not in known and (is_private or _PATH.match(text) is not None)
        return f"{quote}{_HIDDEN if hide else text}{quote}"

    def cleaned(text: str) -> str:
        text = _PATH.sub(_HIDDEN, _QUOTED.sub(shown, text))
        return (_NUMBER.sub(_HIDDEN, text) if is_private and hides_numbers else text)[:_LONGEST]

    return cleaned(error.message), cleaned(error.hint or "")
