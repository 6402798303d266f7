"""The pages that people read, and the code in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_FENCED = re.compile(r"^```(?P<info>[^\n]+)\n(?P<code>.*?)^```", flags=re.MULTILINE | re.DOTALL)
# Commands of the results pages stand by themselves, four spaces to the right.
_INDENTED = re.compile(r"(?:^|\n\n)((?:(?: {4,}|\t)\S[^\n]*\n)+)")


@dataclass(frozen=True)
class Block:
    """A piece of code on a page.

    Args:
        page: where it stands, from the root of the repository.
        language: of the code, such as `python`.
        note: what follows the language: `no-run` for code that needs what is not there.
        code: its lines.
    """

    page: str
    language: str
    note: str
    code: str

    def __str__(self) -> str:
        """Where it stands, for the name of a test."""
        return f"{self.page}: {self.code.strip().splitlines()[0][:40]}"


def blocks(language: str) -> list[Block]:
    """All blocks of a language, page by page."""
    return [block for page in PAGES for block in _blocks(page) if block.language == language]


def _blocks(page: Path) -> list[Block]:
    name, text = page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
    fenced = [
        Block(name, *(match["info"].partition(" ")[::2]), match["code"])  # language, note
        for match in _FENCED.finditer(text)
    ]
    rest = _FENCED.sub("", text)
    return fenced + [Block(name, "sh", "", code) for code in _INDENTED.findall(rest) if _is_command(code)]


def _is_command(code: str) -> bool:
    return code.strip().startswith(("fedelta ", ".venv/bin/", "make ", "python "))
