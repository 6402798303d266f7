"""Escapes names of classes, clients and the like for each format, so that no program runs or renders them."""

from __future__ import annotations

import html
import re
from unicodedata import name

# A spreadsheet takes a text that begins with one of these for a formula; the wide forms only in some languages.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_MARKUP = re.compile(r"([\\`*\[\]|~#!$]|(?<![^\W_])_|_(?![^\W_]))")
# Texts that Markdown turns into a link, an address or a mention without brackets.
_LINK = re.compile(r"(?<=[A-Za-z])(:)(?=//)|(?<=www)(\.)|(@)", re.IGNORECASE)
# Control characters, surrogates, line and paragraph separators, and marks that change the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
_IN_PARAGRAPHS = re.compile(rf"(?![\n\t]){_UNPRINTABLE.pattern}")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# pdfLaTeX sets Greek in formulas only, and has no command for omicron and final sigma.
_GREEK = [chr(code) for code in range(0x3B1, 0x3CA) if code not in (0x3BF, 0x3C2)]
# After a line break, LaTeX takes `[` and `*` for arguments of the break.
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {character: f"{{{character}}}" for character in "[]*"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "`": r"\textasciigrave{}"}
    | {"\N{EN DASH}": "--", "\N{PLUS-MINUS SIGN}": r"$\pm$", "\N{MULTIPLICATION SIGN}": r"$\times$"}
    | {"\N{NARROW NO-BREAK SPACE}": r"\,", "\N{HORIZONTAL ELLIPSIS}": r"\dots{}", _REPLACEMENT: "?"}
    | {letter: f"$\\{name(letter).split()[-1].lower().replace('lamda', 'lambda')}$" for letter in _GREEK}
)


def cell(value: str | float) -> str | float:
    """`text` as a CSV field; a text that a spreadsheet would run gets an apostrophe in front.

    >>> cell("=1+1"), cell(-0.5), cell("-0.5"), cell("seven")
    ("'=1+1", -0.5, '-0.5', 'seven')
    """
    if not isinstance(value, str):
        return value
    runs = value.lstrip(" ").startswith(_FORMULA) and not _is_number(value)
    # The CSV writer only quotes the other kind of line end.
    return ("'" if runs else "") + value.replace("\r\n", "\n").replace("\r", "\n")


def line(text: str) -> str:
    """`text` on one line, without control characters and marks that change the direction of writing."""
    return _UNPRINTABLE.sub(_REPLACEMENT, " ".join(text.splitlines()))


def paragraphs(text: str) -> str:
    """Like `line`, but keeps line breaks and tabs."""
    return _IN_PARAGRAPHS.sub(_REPLACEMENT, text.replace("\r\n", "\n"))


def markdown(text: str) -> str:
    r"""`text` escaped for Markdown, so that it becomes no HTML, link, image, code or emphasis.

    >>> print(markdown("<b> *y* [z](http://a.b) snake_case _i_ | c@d"))
    &lt;b&gt; \*y\* \[z\](http\://a.b) snake_case \_i\_ \| c\@d
    """
    plain = html.escape(line(text), quote=False)
    return _LINK.sub(lambda match: f"\\{match.group()}", _MARKUP.sub(r"\\\1", plain))


def latex(text: str) -> str:
    r"""`text` escaped for LaTeX, also in a table: no command, no formula, no option of the previous line.

    >>> print(latex("50 % of a_b & [c] ± \\"))
    50 \% of a\_b \& {[}c{]} $\pm$ \textbackslash{}
    """
    return line(text).translate(_LATEX)


def code(text: str) -> str:
    """`text` as a code span in Markdown, even if it contains backticks.

    >>> code("a`b")
    '`` a`b ``'
    """
    plain = line(text)
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {plain} {fence}" if longest else f"{fence}{plain}{fence}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
