"""Links of pages that are read both in the repository and on the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping

# Pages of the site that are files of the repository outside of docs/.
TAKEN = {"contributing.md": "CONTRIBUTING.md", "changes.md": "CHANGELOG.md"}

# Code comes first, as it has no links; a picture is not a link.
_LINK = re.compile(
    r"(?P<code>^```.*?^```|`[^`\n]*`)|(?<!!)\[(?P<text>[^\[\]]+)\]\((?P<target>[^()\s]+)\)",
    flags=re.MULTILINE | re.DOTALL,
)


def inside(markdown: str, page: str, on_site: Collection[str], taken: Mapping[str, str] = TAKEN) -> str:
    """A page whose links lead to pages of the site; what is not on the site becomes its plain name.

    Args:
        markdown: the page.
        page: its path on the site, such as `results/fedlama.md`.
        on_site: paths of everything on the site.
        taken: page of the site to the file of the repository that it shows.

    >>> inside("[the loop](../src/loop.py), [bytes](bytes.md)", "lanes.md", {"lanes.md", "bytes.md"})
    'the loop (`src/loop.py`), [bytes](bytes.md)'
    """
    origin = taken.get(page, f"docs/{page}")
    pages = {file: place for place, file in taken.items()} | {f"docs/{place}": place for place in on_site}

    def changed(link: re.Match[str]) -> str:
        text, target = link["text"], link["target"]
        if link["code"] or target.startswith(("#", "https:", "http:", "mailto:")):
            return link[0]
        path, _, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        if file not in pages:
            return text if file in text else f"{text} (`{file}`)"
        place = posixpath.relpath(pages[file], posixpath.dirname(page) or ".")
        return f"[{text}]({place}{'#' * bool(anchor)}{anchor})"

    return _LINK.sub(changed, markdown)
