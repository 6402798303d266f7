"""Notes of six sites, word by word, with the persons, places and dates in them: texts for tags.

A note is a sentence from a pattern. Names are made of syllables, and families have the names of places, so that only
the words around a name say what it is. No given name, no place and no day of the year of the test set is in the
training set. Each site has patterns of its own, and uses any pattern for one note in five. Columns: `words`, `tags`
and `site`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedelta.data.small_world import MONTHS, Chance
from fedelta.seeds import stream

if TYPE_CHECKING:
    from datasets import Dataset

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-DATE", "I-DATE")
PATTERNS: dict[str, tuple[str, ...]] = {
    "clinic": (
        "{person} came to the ward on {date} .", "the doctor saw {person} at noon .",
        "{person} may go home after {date} .", "we gave {number} pills to {person} .",
    ),
    "court": (
        "{person} told the judge about {person} .", "the case of {person} was heard in {place} .",
        "the judge will hear {number} cases on {date} .", "a letter from {person} came too late .",
    ),
    "harbour": (
        "the ship left {place} with {number} men .", "two boats from {place} went to {place} .",
        "the ship must be in {place} before {date} .", "there was ice near {place} until {date} .",
    ),
    "school": (
        "{person} will teach {number} children in {place} .", "on {date} the school in {place} is closed .",
        "the children went by bus to {place} .", "since {date} the class has a new teacher , {person} .",
    ),
    "market": (
        "{number} hats from {place} were sold to {person} .", "on {date} a lamp costs {number} coins .",
        "{person} sells bread at the gate of {place} .", "the fair of {place} ends on {date} .",
    ),
    "press": (
        "{person} was born in {place} on {date} .", "{place} won the match against {place} .",
        "it was in {place} that {person} met {person} .", "{person} , who lives in {place} , was not there .",
    ),
}  # fmt: skip
_STEMS = (
    "Bra", "Cor", "Del", "Fen", "Gar", "Hol", "Jor", "Kel", "Lun", "Mar", "Nor", "Pel", "Ros", "Sel", "Tor", "Vel",
)  # fmt: skip
_GIVEN, _FAMILY = ("a", "an", "ia", "o", "us", "in"), ("berg", "by", "dal", "feld", "ham", "mark", "stad", "ton", "vik")
_SIDES = ("New", "Old", "Upper", "East")
_LARGEST = 40  # of a number that is no date
_OF_OTHERS = 5  # one note in so many has a pattern of any site
_ROWS = {"train": 200, "test": 50}  # of each site


@dataclass(frozen=True)
class _Names:
    """Of what the persons, places and dates of a set are made.

    Args:
        given: names.
        towns: names of places, and of families.
        days: of the year.
    """

    given: Sequence[str]
    towns: Sequence[str]
    days: Sequence[str]


def notes() -> dict[str, Dataset]:
    """The training and the test set, always the same."""
    from datasets import ClassLabel, Dataset, Features, List, Value

    features = Features(
        {"words": List(Value("string")), "tags": List(ClassLabel(names=list(TAGS))), "site": Value("string")}
    )
    return {name: Dataset.from_list(_rows(name, names), features=features) for name, names in _names().items()}


def _names() -> dict[str, _Names]:
    """The names of the training set, and those of the test set: a quarter of each kind."""
    chance = Chance(stream(0, "small notes", "names"))
    everything = (
        [stem + end for stem in _STEMS for end in _GIVEN],
        [stem + end for stem in _STEMS for end in _FAMILY],
        [f"{day} {month}" for month in MONTHS for day in range(1, 29)],
    )
    mixed = [chance.some(kind, len(kind)) for kind in everything]
    return {
        "train": _Names(*(kind[len(kind) // 4 :] for kind in mixed)),
        "test": _Names(*(kind[: len(kind) // 4] for kind in mixed)),
    }


def _rows(name: str, names: _Names) -> list[dict[str, object]]:
    """The notes of all sites."""
    everywhere = [pattern for patterns in PATTERNS.values() for pattern in patterns]
    rows: list[dict[str, object]] = []
    for site, patterns in PATTERNS.items():
        chance = Chance(stream(0, "small notes", name, site))
        for _ in range(_ROWS[name]):
            pattern = chance.one(patterns if chance.below(_OF_OTHERS) else everywhere)
            words, tags = _note(pattern, names, chance)
            rows.append({"words": words, "tags": tags, "site": site})
    return rows


def _note(pattern: str, names: _Names, chance: Chance) -> tuple[list[str], list[str]]:
    """The words of a note, and the tag of each."""
    words: list[str] = []
    tags: list[str] = []
    for part in pattern.split():
        kind, filled = _filled(part, names, chance)
        words += filled
        tags += [f"B-{kind}", *[f"I-{kind}"] * (len(filled) - 1)] if kind else ["O"]
    return words, tags


def _filled(part: str, names: _Names, chance: Chance) -> tuple[str, list[str]]:
    """The kind of what a part of a pattern stands for, and its words; no kind for a word that stands for itself."""
    match part:
        case "{person}":
            given, family = chance.one(names.given), chance.one(names.towns)
            return "PER", [given] if chance.below(4) == 0 else [given, family]
        case "{place}":
            town = chance.one(names.towns)
            return "LOC", [chance.one(_SIDES), town] if chance.below(3) == 0 else [town]
        case "{date}":
            year = [str(1900 + chance.below(100))] if chance.below(3) == 0 else []
            return "DATE", [*chance.one(names.days).split(), *year]
        case "{number}":
            return "", [str(2 + chance.below(_LARGEST - 1))]
        case _:
            return "", [part]
