"""Which level of folders is what: splits, clients, classes.

Said with `data.folders`, or found out where there is one way only to read the folders. Splits are known by their names,
a level with one folder says nothing, and of the levels that are left one is that of the classes. Where two are left,
one of them may be sites, speakers or sub-classes: nobody can tell from names, and a wrong guess would be learned
without a word.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from fedelta.data.naming import CLIENT, LABEL, SPLIT, UNUSED
from fedelta.data.split_names import kind_of
from fedelta.errors import DataError, listed

Place = tuple[str, ...]  # the folders of a file, from the top
_OPEN = "?"
_NUM_SHOWN = 3


def find_levels(places: Sequence[Place], known_splits: Sequence[str], *, needs_label: bool) -> tuple[str, ...]:
    """What each level of folders is, from the top, as far as it says something.

    >>> find_levels([("Train", "cat"), ("Train", "dog"), ("val", "cat")], [], needs_label=True)
    ('split', 'label')

    Args:
        places: of all files, and of folders without any.
        known_splits: further names of splits.
        needs_label: whether classes are folders; otherwise only splits are looked for.

    Raises:
        DataError: there is more than one way to read them; names each, and what to set.
    """
    levels: list[str] = []
    for names in _names_by_level(places):
        is_last = len(levels) + 1 == max(map(len, places))
        levels.append(_level(names, levels, known_splits, is_last=is_last))
    is_open = [place for place, level in enumerate(levels) if level == _OPEN]
    if not needs_label:
        return _without_end([UNUSED if level == _OPEN else level for level in levels])
    if len(is_open) > 1:
        raise _ambiguous(places, levels, is_open)
    if is_open:
        levels[is_open[0]] = LABEL
        return tuple(levels[: max(is_open[0], _last(levels, SPLIT)) + 1])
    # One class alone, or none: the first level that could be it, for those who say what is missing.
    below = _last(levels, SPLIT) + 1
    return (*levels[:below], LABEL)


def described(levels: Sequence[str]) -> str:
    """As `data.folders` has it."""
    return "/".join(levels)


def _names_by_level(places: Sequence[Place]) -> list[list[str]]:
    depth = max(map(len, places))
    return [sorted({place[level] for place in places if len(place) > level}) for level in range(depth)]


def _level(names: Sequence[str], above: Sequence[str], known_splits: Sequence[str], *, is_last: bool) -> str:
    splits = [name for name in names if name in known_splits or kind_of(name) is not None]
    if splits and SPLIT not in above:
        # Two kinds of splits side by side are no two classes; "train" beside "bus" and "car" may be one.
        several = len({kind_of(name) or name for name in splits}) > 1
        if len(splits) == len(names) or several:
            return SPLIT
        if any(kind_of(name) == "train" for name in splits) and not is_last:
            raise DataError(
                f"folder {splits[0]!r} may be the training set or a class, beside {listed(_others(names, splits))}",
                hint="set `data.folders` to 'split/label' or to 'label' (from the top, '*' for a level that says "
                "nothing)",
            )
    return UNUSED if len(names) == 1 else _OPEN


def _others(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    return [name for name in names if name not in taken]


def _ambiguous(places: Sequence[Place], levels: Sequence[str], is_open: Sequence[int]) -> DataError:
    names = _names_by_level(places)
    readings = []
    for client, label in [*itertools.permutations(is_open, 2), (None, is_open[0])]:
        reading = [UNUSED if place in is_open else level for place, level in enumerate(levels)]
        reading[label] = LABEL
        words = f"classes {listed(names[label], _NUM_SHOWN)}"
        if client is not None:
            reading[client] = CLIENT
            words = f"clients {listed(names[client], _NUM_SHOWN)}, {words}"
        readings.append(f"{described(_without_end(reading))!r} ({words})")
    return DataError(
        f"the folders can be read in {len(readings)} ways: {'; '.join(readings)}",
        hint="set `data.folders` to the one that is meant",
    )


def _without_end(levels: Sequence[str]) -> tuple[str, ...]:
    """Without what says nothing at the end."""
    used = [place for place, level in enumerate(levels) if level != UNUSED]
    return tuple(levels[: used[-1] + 1]) if used else ()


def _last(levels: Sequence[str], wanted: str) -> int:
    """Place of the last level that is `wanted`; -1 for none."""
    return max((place for place, level in enumerate(levels) if level == wanted), default=-1)
