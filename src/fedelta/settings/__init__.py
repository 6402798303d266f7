"""What a configuration can describe: frozen values that check themselves, and how they are read and overridden."""

from __future__ import annotations

from fedelta.settings.base import Context, Settings

__all__ = ["Context", "Settings"]
