"""A small world to talk about: texts for the bundled language model, and instructions about the same facts.

The texts state facts: who is where and has what, sums, days, months, opposites and what animals say. The instructions
ask for them, in words that the texts do not use, so that a model that has read the texts knows the facts and not how to
answer. Everything is drawn from a seed; no text of anybody else took part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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


class Chance:
    """Draws from a generator."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def below(self, limit: int) -> int:
        """A whole number from 0 to `limit` - 1."""
        return int(torch.randint(limit, (), generator=self._generator))

    def one(self, items: Sequence[str]) -> str:
        """One of these."""
        return items[self.below(len(items))]

    def some(self, items: Sequence[str], num: int) -> list[str]:
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


def instructions(seed: int, num_train: int, num_test: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and test rows: `prompt`, `response`, and `client`, which is the kind of question.

    Args:
        seed: of what is asked.
        num_train: rows of each kind for training.
        num_test: rows of each kind for the test.
    """
    train: list[dict[str, str]] = []
    test: list[dict[str, str]] = []
    for kind, ask in QUESTIONS.items():
        chance = Chance(stream(seed, "small world", kind))
        rows = [dict(zip(("prompt", "response"), ask(chance), strict=True)) for _ in range(num_train + num_test)]
        train += [{**row, "client": kind} for row in rows[:num_train]]
        test += [{**row, "client": kind} for row in rows[num_train:]]
    return train, test


def _ask_where(chance: Chance) -> tuple[str, str]:
    (name,), (first, last) = chance.some(PEOPLE, 1), chance.some(PLACES, 2)
    return f"{name} was in the {first}. Then {name} went to the {last}. Where is {name}?", f"in the {last}"


def _ask_colour(chance: Chance) -> tuple[str, str]:
    (one, two), (left, right) = chance.some(PEOPLE, 2), chance.some(THINGS, 2)
    colours = chance.some(COLOURS, 2)
    told = f"{one} has a {colours[0]} {left}. {two} has a {colours[1]} {right}."
    first = chance.below(2)
    thing, answer = ((left, colours[0]), (right, colours[1]))[first]
    return f"{told} What colour is the {thing}?", answer


def _ask_sum(chance: Chance) -> tuple[str, str]:
    total = chance.below(_LARGEST + 1)
    left = chance.below(total + 1)
    return f"How much is {left} and {total - left}?", str(total)


def _ask_day(chance: Chance) -> tuple[str, str]:
    place, word = chance.below(len(DAYS)), chance.one(("after", "behind"))
    return f"Tell me the day {word} {DAYS[place]}.", DAYS[(place + 1) % len(DAYS)]


def _ask_month(chance: Chance) -> tuple[str, str]:
    place, word = chance.below(len(MONTHS)), chance.one(("after", "behind"))
    return f"Tell me the month {word} {MONTHS[place]}.", MONTHS[(place + 1) % len(MONTHS)]


def _ask_opposite(chance: Chance) -> tuple[str, str]:
    word = chance.one([*OPPOSITES])
    left, right = (word, OPPOSITES[word]) if chance.below(2) else (OPPOSITES[word], word)
    return f"Give the opposite of {left}.", right


def _ask_sound(chance: Chance) -> tuple[str, str]:
    animal = chance.one([*SOUNDS])
    return f"What does a {animal} say?", SOUNDS[animal]


def _ask_owner(chance: Chance) -> tuple[str, str]:
    (one, two), (left, right) = chance.some(PEOPLE, 2), chance.some(THINGS, 2)
    colours = chance.some(COLOURS, 2)
    told = f"{one} has a {colours[0]} {left}. {two} has a {colours[1]} {right}."
    thing, answer = ((left, one), (right, two))[chance.below(2)]
    return f"{told} Who has the {thing}?", answer


QUESTIONS: dict[str, Callable[[Chance], tuple[str, str]]] = {
    "where": _ask_where, "colour": _ask_colour, "sum": _ask_sum, "day": _ask_day, "month": _ask_month,
    "opposite": _ask_opposite, "sound": _ask_sound, "owner": _ask_owner,
}  # fmt: skip
