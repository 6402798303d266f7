"""The order of the pages, as mkdocs.yml has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# A table of contents as MkDocs reads it: pages, and sections with their title.
Nav = list[str | dict[str, "Nav"]]

# Folder to the section that its pages belong to.
SECTIONS = {"how-to/": "How to", "results/": "Results"}


def in_order(nav: Nav) -> Iterator[str]:
    """The paths of the pages."""
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for pages in entry.values():
                yield from in_order(pages)


def completed(nav: Nav, paths: Iterable[str]) -> Nav:
    """The navigation with pages of a section's folder that it does not name, at the end of the section.

    >>> completed(["index.md", {"Results": ["results/a.md"]}], ["results/b.md", "index.md", "results/a.md"])
    ['index.md', {'Results': ['results/a.md', 'results/b.md']}]
    """
    named = set(in_order(nav))
    missing = sorted(path for path in paths if path not in named)

    def of(title: str) -> list[str]:
        return [path for path in missing for folder, name in SECTIONS.items() if name == title and folder in path]

    return [
        entry if isinstance(entry, str) else {title: [*pages, *of(title)] for title, pages in entry.items()}
        for entry in nav
    ]
