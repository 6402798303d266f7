"""The cases that stand for all combinations contain every pair of them."""

from __future__ import annotations

from itertools import combinations, product

from tests.pairs import pairwise

AXES = {"size": ["s", "m", "l", "xl"], "colour": ["red", "blue"], "shape": ["round", "square", "flat"]}


def met(cases: list[dict[str, str]]) -> set[frozenset[tuple[str, str]]]:
    return {frozenset(pair) for case in cases for pair in combinations(case.items(), 2)}


def test_every_pair_is_in_a_case_and_the_cases_are_few():
    cases = pairwise(AXES)
    assert met(cases) == met([dict(zip(AXES, values, strict=True)) for values in product(*AXES.values())])
    assert 12 <= len(cases) <= 14  # 4 sizes x 3 shapes cannot be fewer; all combinations are 24
    assert cases == pairwise(AXES)


def test_what_may_not_meet_meets_in_no_case_and_all_else_does():
    forbidden = {"size": "xl", "colour": "red"}
    cases = pairwise(AXES, lambda case: not forbidden.items() <= case.items())
    assert met(cases) == met(pairwise(AXES)) - {frozenset(forbidden.items())}
