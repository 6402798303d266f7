"""The section "Wrong answers": a few test examples, what they are and what the finished model took them for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedelta.errors import RunError
from fedelta.record.files import Record, read_json
from fedelta.record.history import History
from fedelta.record.numbers import percent
from fedelta.record.rundir import MISTAKES

_BASE64 = re.compile(r"[A-Za-z0-9+/]{16,60000}={0,2}")


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: the base64 of a small PNG or the beginning of a text, whichever there is, and three lines."""

    image: str
    text: str
    row: str
    true: str
    answer: str


@dataclass(frozen=True)
class MistakeSection:
    """The content of mistake_section.html."""

    template: ClassVar[str] = "mistake_section.html"
    title: str
    note: str
    mistakes: Sequence[Mistake]


def section(run: History, *, titled: bool) -> MistakeSection | None:
    """The section for `run`; None if it has kept no wrong answers.

    Raises:
        RunError: `mistakes.json` has other content.
    """
    path = run.path / MISTAKES
    if not path.exists():
        return None
    try:
        mistakes = [_mistake(entry, run.task.name) for entry in read_json(path)["mistakes"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{str(path)!r} does not hold wrong answers: {error!r}.") from error
    if not mistakes:
        return None
    title = f"Wrong answers of {run.name}" if titled else "Wrong answers"
    note = f"Rows of the {run.measured_on} set that the finished model answered wrongly, the surest answers first."
    return MistakeSection(title, note, mistakes)


def _mistake(entry: Record, task: str) -> Mistake:
    image, text, probability = str(entry.get("image", "")), str(entry.get("text", "")), entry.get("probability")
    if image and not _BASE64.fullmatch(image):
        raise ValueError("an image is not the base64 of a small PNG")
    sure = "" if probability is None else f" ({percent(float(probability))})"
    true, answer = str(entry["true"]), str(entry["answer"])
    if task == "tokens":
        true, answer = _where_they_differ(text, true, answer)
    if task == "multi-label":
        true, answer = true.replace("|", ", "), answer.replace("|", ", ")
    return Mistake(image, text, f"row {int(entry['row'])}", true, f"{answer}{sure}")


def _where_they_differ(text: str, true: str, answer: str) -> tuple[str, str]:
    """The words with wrong tags, with their tags; all tags if words and tags cannot be told to belong together.

    >>> _where_they_differ("Ada sails to Kiel", "B-PER O O B-LOC", "B-LOC O O O")
    ('Ada B-PER, Kiel B-LOC', 'Ada B-LOC, Kiel O')
    """
    words, truths, answers = text.split(), true.split(), answer.split()
    if not len(words) == len(truths) == len(answers):
        return true, answer
    wrong = [place for place, tag in enumerate(truths) if tag != answers[place]]
    told = [", ".join(f"{words[place]} {tags[place]}" for place in wrong) for tags in (truths, answers)]
    return told[0], told[1]
