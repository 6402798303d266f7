"""The backbones that come with this package."""

from __future__ import annotations

from pathlib import Path

from fedelta.errors import ModelError

_BUNDLED = Path(__file__).parent / "bundled"


def bundled_path(name: str) -> Path:
    """Directory of the backbone `name` that comes with this package, in the hub's form.

    Raises:
        ModelError: there is no such backbone; the message names those there are.
    """
    if name not in bundled_names():  # a path, such as "../x" or "/x", is none
        raise ModelError(f"there is no bundled backbone {name!r}, expected one of {', '.join(bundled_names())}.")
    return _BUNDLED / name


def bundled_names() -> list[str]:
    """Names of the backbones that come with this package."""
    return sorted(entry.parent.name for entry in _BUNDLED.glob("*/config.json"))
