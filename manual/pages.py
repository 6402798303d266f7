"""The pages of the site that are not files below docs/."""

from __future__ import annotations

from collections.abc import Callable

from manual import commands, names, settings

# Path on the site to what writes it.
GENERATED: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands.page,
    "reference/settings.md": settings.page,
    "reference/python.md": names.page,
}
