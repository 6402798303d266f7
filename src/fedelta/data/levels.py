"""Infers the meaning of each level of folders (splits, clients, classes) if `data.folders` does not state it.

Splits are recognised by their names, a level with a single folder has no meaning, and the one level that remains holds
the classes. If two levels remain, one of them may hold sites, speakers or sub-classes. Names do not show which, and a
wrong guess would silently train on wrong labels, so this is an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from fedelta.data.naming import CLIENT, LABEL, SPLIT, UNUSED
from fedelta.data.split_names import split_kind
from fedelta.errors import DataError, listed

Place = tuple[str, ...]  # the folders of a file, from the top
_OPEN = "?"
_NUM_SHOWN = 3


def infer_levels(places: Sequence[Place], known_splits: Sequence[str], *, needs_label: bool) -> tuple[str, ...]:
    """The meaning of each level of folders, from the top down to the last level with a meaning.

    >>> infer_levels([("Train", "cat"), ("Train", "dog"), ("val", "cat")], [], needs_label=True)
    ('split', 'label')

    Args:
        places: folders of each file, and empty folders.
        known_splits: further names of splits.
        needs_label: whether folders are classes; otherwise only splits are recognised.

    Raises:
        DataError: there are several ways to read the folders; lists them, and the setting that decides.
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
    # A single class or none: assume the first possible level, so that later checks can report what is missing.
    below = _last(levels, SPLIT) + 1
    return (*levels[:below], LABEL)


def as_setting(levels: Sequence[str]) -> str:
    """The levels as a value of `data.folders`."""
    return "/".join(levels)


def _names_by_level(places: Sequence[Place]) -> list[list[str]]:
    depth = max(map(len, places))
    return [sorted({place[level] for place in places if len(place) > level}) for level in range(depth)]


def _level(names: Sequence[str], above: Sequence[str], known_splits: Sequence[str], *, is_last: bool) -> str:
    splits = [name for name in names if name in known_splits or split_kind(name) is not None]
    if splits and SPLIT not in above:
        # Several kinds of splits side by side cannot be classes; "train" beside "bus" and "car" can.
        several = len({split_kind(name) or name for name in splits}) > 1
        if len(splits) == len(names) or several:
            return SPLIT
        if any(split_kind(name) == "train" for name in splits) and not is_last:
            raise DataError(
                f"folder {splits[0]!r} may be the training set or a class, beside {listed(_others(names, splits))}",
                hint="set `data.folders` to 'split/label' or to 'label' (from the top, with '*' for a level to ignore)",
            )
    return UNUSED if len(names) == 1 else _OPEN


def _others(names: Sequence[str], splits: Sequence[str]) -> list[str]:
    return [name for name in names if name not in splits]


def _ambiguous(places: Sequence[Place], levels: Sequence[str], is_open: Sequence[int]) -> DataError:
    names = _names_by_level(places)
    readings, settings = [], []
    for client, label in [*itertools.permutations(is_open, 2), (None, is_open[0])]:
        reading = [UNUSED if place in is_open else level for place, level in enumerate(levels)]
        reading[label] = LABEL
        words = f"classes {listed(names[label], _NUM_SHOWN)}"
        if client is not None:
            reading[client] = CLIENT
            words = f"clients {listed(names[client], _NUM_SHOWN)}, {words}"
        settings.append(as_setting(_without_end(reading)))
        readings.append(f"{settings[-1]!r} ({words})")
    return DataError(
        f"the folders can be read in {len(readings)} ways: {'; '.join(readings)}",
        hint=f"set `data.folders` to the right one: `--set data.folders={settings[0]}`, or in section `[data]`",
    )


def _without_end(levels: Sequence[str]) -> tuple[str, ...]:
    """The levels without trailing ones that have no meaning."""
    used = [place for place, level in enumerate(levels) if level != UNUSED]
    return tuple(levels[: used[-1] + 1]) if used else ()


def _last(levels: Sequence[str], kind: str) -> int:
    """Position of the last level of `kind`; -1 if there is none."""
    return max((place for place, level in enumerate(levels) if level == kind), default=-1)
