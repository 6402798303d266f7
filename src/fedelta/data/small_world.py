"""A small world to talk about: texts for the bundled language model, and instructions about the same facts.

The texts state facts: who is where and has what, sums, days, months, opposites and what animals say. The instructions
ask for them, in words that the texts do not use, so that a model that has read the texts knows the facts and not how to
answer. Everything is drawn from a seed; no text of anybody else took part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Generator

from fedelta.seeds import stream

PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jonas", "Kate", "Leo")
PLACES = ("garden", "kitchen", "school", "park", "house", "barn", "market", "library")
THINGS = ("ball", "book", "cup", "hat", "box", "kite", "lamp", "coat", "bell", "drum")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "old": "new", "open": "closed", "fast": "slow", "wet": "dry", "full": "empty",
    "happy": "sad", "high": "low", "dark": "light", "hard": "soft", "long": "short",
}  # fmt: skip
SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "pig": "oink", "owl": "hoot",
    "bee": "buzz", "crow": "caw", "mouse": "squeak",
}  # fmt: skip
_LARGEST = 20  # of a sum
_KEPT_FOR_TEST = 4  # one story or sum in so many
_NUM_BELONGINGS = 400


_Item = TypeVar("_Item")


class Chance:
    """Draws from a generator."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def below(self, limit: int) -> int:
        """A whole number from 0 to `limit` - 1."""
        return int(torch.randint(limit, (), generator=self._generator))

    def one(self, items: Sequence[_Item]) -> _Item:
        """One of these."""
        return items[self.below(len(items))]

    def some(self, items: Sequence[_Item], num: int) -> list[_Item]:
        """This many of these, all different."""
        return [items[place] for place in torch.randperm(len(items), generator=self._generator)[:num].tolist()]


def statements(seed: int, num: int) -> Iterator[str]:
    """Yields `num` short texts that state facts, two to four sentences each."""
    chance = Chance(stream(seed, "small world", "statements"))
    kinds = (_moves, _owns, _sum, _day, _month, _opposite, _sound)
    weights = (3, 3, 4, 1, 1, 1, 1)
    drawn = [kind for kind, weight in zip(kinds, weights, strict=True) for _ in range(weight)]
    for _ in range(num):
        yield " ".join(drawn[chance.below(len(drawn))](chance) for _ in range(2 + chance.below(2)))


def _moves(chance: Chance) -> str:
    (name,), (first, last) = chance.some(PEOPLE, 1), chance.some(PLACES, 2)
    return f"{name} was in the {first}. Then {name} went to the {last}. Now {name} is in the {last}."


def _owns(chance: Chance) -> str:
    (one, two), (left, right) = chance.some(PEOPLE, 2), chance.some(THINGS, 2)
    colours = chance.some(COLOURS, 2)
    told = f"{one} has a {colours[0]} {left}. {two} has a {colours[1]} {right}."
    return f"{told} The {left} of {one} is {colours[0]} and the {right} of {two} is {colours[1]}."


def _sum(chance: Chance) -> str:
    total = chance.below(_LARGEST + 1)
    left = chance.below(total + 1)
    return f"{left} and {total - left} make {total}."


def _day(chance: Chance) -> str:
    place = chance.below(len(DAYS))
    return f"{DAYS[place]} is followed by {DAYS[(place + 1) % len(DAYS)]}."


def _month(chance: Chance) -> str:
    place = chance.below(len(MONTHS))
    return f"{MONTHS[place]} is followed by {MONTHS[(place + 1) % len(MONTHS)]}."


def _opposite(chance: Chance) -> str:
    word = chance.one([*OPPOSITES])
    left, right = (word, OPPOSITES[word]) if chance.below(2) else (OPPOSITES[word], word)
    return f"What is {left} is not {right}."


def _sound(chance: Chance) -> str:
    animal = chance.one([*SOUNDS])
    return f"The {animal} says {SOUNDS[animal]}."


@dataclass(frozen=True)
class Question:
    """A kind of question.

    Args:
        facts: gives those that are asked for: what the wordings need, and `answer`.
        wordings: of training, to be filled with a fact.
        others: wordings of the test, which then asks for the same facts. None: the test has the wordings of training,
            and asks for facts that training does not ask for.
    """

    facts: Callable[[Chance], list[dict[str, str]]]
    wordings: tuple[str, ...]
    others: tuple[str, ...] = ()


def instructions(seed: int, num_train: int, num_test: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and test rows: `prompt`, `response`, and `client`, which is the kind of question.

    No prompt of the test is one of training. Where there are so few facts that a model can only know them (days,
    months, opposites, sounds), the test asks for them in other words; elsewhere it tells other stories, or adds other
    numbers.

    Args:
        seed: of what is asked.
        num_train: rows of each kind for training.
        num_test: rows of each kind for the test.
    """
    train: list[dict[str, str]] = []
    test: list[dict[str, str]] = []
    for kind, question in QUESTIONS.items():
        chance = Chance(stream(seed, "small world", kind))
        facts = question.facts(chance)
        facts = chance.some(facts, len(facts))
        num_kept = 0 if question.others else len(facts) // _KEPT_FOR_TEST
        for rows, asked, wordings, num in (
            (train, facts[num_kept:], question.wordings, num_train),
            (test, facts[:num_kept] or facts, question.others or question.wordings, num_test),
        ):
            rows += [_row(kind, chance.one(asked), chance.one(wordings)) for _ in range(num)]
    return train, test


def _row(kind: str, fact: Mapping[str, str], wording: str) -> dict[str, str]:
    return {"prompt": wording.format(**fact), "response": fact["answer"], "client": kind}


def _whereabouts(_: Chance) -> list[dict[str, str]]:
    return [
        {"name": name, "first": first, "last": last, "answer": f"in the {last}"}
        for name in PEOPLE
        for first in PLACES
        for last in PLACES
        if first != last
    ]


def _belongings(chance: Chance) -> list[dict[str, str]]:
    facts = []
    for _ in range(_NUM_BELONGINGS):
        people, things, colours = chance.some(PEOPLE, 2), chance.some(THINGS, 2), chance.some(COLOURS, 2)
        asked = chance.below(2)
        told = " ".join(f"{people[i]} has a {colours[i]} {things[i]}." for i in range(2))
        facts.append({"told": told, "thing": things[asked], "name": people[asked], "colour": colours[asked]})
    return facts


def _colours(chance: Chance) -> list[dict[str, str]]:
    return [{**fact, "answer": fact["colour"]} for fact in _belongings(chance)]


def _owners(chance: Chance) -> list[dict[str, str]]:
    return [{**fact, "answer": fact["name"]} for fact in _belongings(chance)]


def _sums(_: Chance) -> list[dict[str, str]]:
    return [
        {"left": str(left), "right": str(total - left), "answer": str(total)}
        for total in range(_LARGEST + 1)
        for left in range(total + 1)
    ]


def _followers(names: Sequence[str]) -> list[dict[str, str]]:
    return [{"of": name, "answer": names[(place + 1) % len(names)]} for place, name in enumerate(names)]


def _days(_: Chance) -> list[dict[str, str]]:
    return _followers(DAYS)


def _months(_: Chance) -> list[dict[str, str]]:
    return _followers(MONTHS)


def _opposites(_: Chance) -> list[dict[str, str]]:
    both = {**OPPOSITES, **{right: left for left, right in OPPOSITES.items()}}
    return [{"of": word, "answer": other} for word, other in both.items()]


def _sounds(_: Chance) -> list[dict[str, str]]:
    return [{"of": animal, "answer": sound} for animal, sound in SOUNDS.items()]


def _after(period: str, rows: Callable[[Chance], list[dict[str, str]]]) -> Question:
    """What follows a day or a month."""
    return Question(
        rows,
        (
            f"Tell me the {period} after {{of}}.",
            f"Which {period} comes behind {{of}}?",
            f"What {period} follows {{of}}?",
        ),
        (f"Which {period} comes after {{of}}?", f"Tell me the {period} that follows {{of}}."),
    )


QUESTIONS = {
    "where": Question(_whereabouts, ("{name} was in the {first}. Then {name} went to the {last}. Where is {name}?",)),
    "colour": Question(_colours, ("{told} What colour is the {thing}?",)),
    "sum": Question(_sums, ("How much is {left} and {right}?", "Add {left} and {right}.")),
    "day": _after("day", _days),
    "month": _after("month", _months),
    "opposite": Question(
        _opposites,
        ("Give the opposite of {of}.", "What is not {of}?", "Tell me the opposite of {of}."),
        ("What is the opposite of {of}?", "Tell me what is not {of}."),
    ),
    "sound": Question(
        _sounds,
        ("What does a {of} say?", "Tell me the sound of a {of}.", "Which sound does a {of} make?"),
        ("Tell me what a {of} says.", "What is the sound of a {of}?"),
    ),
    "owner": Question(_owners, ("{told} Who has the {thing}?",)),
}
