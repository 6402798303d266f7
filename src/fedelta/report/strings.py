"""HTML put together from strings, which the page of a comparison still is; deleted when that is a template."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape

from fedelta.report.drawing import SERIES, STYLES
from fedelta.report.rendering import render


def fill(title: str, parts: Sequence[str]) -> str:
    """The frame of every page around `parts`, which are trusted as HTML; `title` is escaped."""
    return render("strings.html", {"title": title, "content": "\n".join(parts)})


def figure(svg: str, title: str, note: str = "") -> str:
    """A figure with its title above and a note below; `svg` is trusted, the others are escaped."""
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return f"<figure><h3>{escape(title)}</h3>{svg}{caption}</figure>"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers_from: int | None = None,
    strong: Collection[tuple[int, int]] = (),
) -> str:
    """A table; columns from `numbers_from` on are aligned right, the places (row, column) in `strong` stand out."""

    def cell(kind: str, row: int, column: int, text: str) -> str:
        number = numbers_from is not None and column >= numbers_from
        content = f"<strong>{escape(text)}</strong>" if (row, column) in strong else escape(text)
        return f"<{kind}{' class=number' if number else ''}>{content}</{kind}>"

    head = "".join(cell("th", -1, column, text) for column, text in enumerate(header))
    body = "".join(
        f"<tr>{''.join(cell('td' if column else 'th', place, column, text) for column, text in enumerate(row))}</tr>"
        for place, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def legend(names: Sequence[str], shown: Collection[int] | None = None) -> str:
    """The runs by name, each with its line as the plots draw it; all of them, or those at the places `shown`."""
    items = []
    for index, name in enumerate(names):
        if shown is not None and index not in shown:
            continue
        color = index % len(SERIES) + 1
        dashes = " ".join(f"{2.4 * length:g}" for length in STYLES[index % len(STYLES)])
        items.append(
            f'<li><svg width="30" height="8" aria-hidden="true"><line x1="1" y1="4" x2="29" y2="4" '
            f'stroke="var(--series-{color})" stroke-width="2.4" stroke-dasharray="{dashes}"/></svg>'
            f"{escape(name)}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'
