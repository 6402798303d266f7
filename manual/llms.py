"""llms.txt: the pages of the site with a line each, for programs that read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator


def index(about: str, pages: Iterable[tuple[str, str, str]]) -> str:
    """The content of llms.txt.

    Args:
        about: one sentence about the project.
        pages: address, title and Markdown of each page, in the order of the site.
    """
    lines = [f"- [{title}]({address}): {first_sentence(markdown)}" for address, title, markdown in pages]
    return "\n".join(["# fedelta", "", f"> {about}", "", *lines, ""])


def first_sentence(markdown: str) -> str:
    r"""The first sentence of a page below its title, without the marks of links and code.

    >>> first_sentence("# Lanes\n\nClients train in [lanes](lanes.md). They share `one` model.")
    'Clients train in lanes.'
    """
    text = re.sub(r"^```.*?^```$|^ {4}[^\n]*$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    blocks = (" ".join(block.split()) for block in text.split("\n\n"))
    paragraph = next((block for block in blocks if re.match(r"[\w`*\[]", block)), "")
    plain = re.sub(r"\[([^\[\]]+)\]\([^()]+\)", r"\1", paragraph).replace("`", "").replace("**", "")
    return re.split(r"(?<=[.:])\s(?=[A-Z])", plain, maxsplit=1)[0]


def in_order(nav: object) -> Iterator[str]:
    """The paths of the pages in the navigation of mkdocs.yml."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else list(nav):  # type: ignore[call-overload]
            yield from in_order(entry)
