"""The page about every key of a configuration, from the same reference that `fedelta list SECTION` prints."""

from __future__ import annotations

from fedelta.config import Config
from fedelta.settings.reference import Key, Section, reference

_HEAD = """# Settings

Every key that a configuration can have, with its type, its default, and where the default is from.

A key is written in its section (`[tuning]`, then `r = 4`), or on the command line as `--set tuning.r=4`. Where a
section has a `name`, the name decides which other keys there are. `fedelta list` names the choices, `fedelta list
tuning.lora` prints what is here; methods of your own add theirs ([Plug-ins](../plugins.md)).
"""


def page() -> str:
    """The page, in Markdown."""
    parts = [_HEAD]
    by_path: dict[str, list[Section]] = {}
    for section in reference(Config):
        by_path.setdefault(section.path, []).append(section)
    for path, sections in by_path.items():
        parts.append(f"## {path or 'Without a section'}\n")
        for section in sections:
            parts += _shown(section)
    return "\n".join(parts)


def _shown(section: Section) -> list[str]:
    names = " or ".join(f'"{name}"' for name in section.names)
    default = " (default)" if section.default else ""
    head = [f"### {section.path}.name = {names}{default}\n"] if names else []
    return [*head, f"{section.summary}\n", *([_table(section.keys)] if section.keys else [])]


def _table(keys: tuple[Key, ...]) -> str:
    head = "| key | value | default | meaning |\n|---|---|---|---|\n"
    return head + "".join(
        f"| `{key.path.rpartition('.')[2]}` | {_cell(key.type)} | {_default(key)} | {_cell(key.meaning)} |\n"
        for key in keys
    )


def _default(key: Key) -> str:
    default = key.default if key.default in ("required", "nothing") else f"`{key.default}`"
    return _cell(f"{default} ({key.origin})" if key.origin else default)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
