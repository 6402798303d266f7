"""The bytes of a run by part of its model: by block or, where all blocks send the same, by role."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from fedelta.record.history import History

MAX_PARTS = 14
# A name up to the number of its block, and what follows it: `vit.layers.3` and `attention.q_proj`.
_BLOCK = re.compile(r"((?P<kind>.*/)?.*?(?<=\.)\d+)\.?(?P<role>.*)")
_Bytes = tuple[int, int]  # down and up


def by_part(run: History) -> dict[str, _Bytes]:
    """Bytes down and up by part, in the model's order; the smallest of many parts are one, and headers come last."""
    down, up = run.ledger.groups["down"], run.ledger.groups["up"]
    parts = collected({group: (down.get(group, 0), up.get(group, 0)) for group in {**down, **up}})
    largest = set(sorted(parts, key=lambda name: -sum(parts[name]))[:MAX_PARTS])
    shown = {name: sent for name, sent in parts.items() if name in largest}
    if merged := [sent for name, sent in parts.items() if name not in largest]:
        shown[f"{len(merged)} more"] = _total(merged)
    headers = (
        run.ledger.downlink_bytes - run.ledger.downlink_tensor_bytes,
        run.ledger.uplink_bytes - run.ledger.uplink_tensor_bytes,
    )
    return shown | {"headers": headers}


def collected(groups: Mapping[str, _Bytes]) -> dict[str, _Bytes]:
    """The bytes of groups by block or, where all blocks have sent the same, by role; few groups stay as they are.

    >>> equal = {f"vit.layers.{block}.attention.{role}": (6, 3) for block in range(4) for role in ("q", "v")}
    >>> collected({**equal, "classifier": (5, 5)})
    {'attention.q, 4 blocks': (24, 12), 'attention.v, 4 blocks': (24, 12), 'classifier': (5, 5)}
    >>> list(collected({**equal, "vit.layers.1.attention.q": (2, 1), "classifier": (5, 5)}))
    ['vit.layers.0', 'vit.layers.1', 'vit.layers.2', 'vit.layers.3', 'classifier']
    """
    if len(groups) < 6:
        return dict(groups)
    places = {name: _BLOCK.fullmatch(name) for name in groups}
    by_block = _summed({name: place[1] if place else name for name, place in places.items()}, groups)
    blocks = {place[1] for place in places.values() if place}
    if len({by_block[block] for block in blocks}) > 1:
        return by_block
    roles = {name: f"{place['kind'] or ''}{place['role']}" if place else name for name, place in places.items()}
    numbers = Counter(roles.values())
    named = {
        name: f"{role}, {numbers[role]} blocks".removeprefix(", ") if numbers[role] > 1 else role
        for name, role in roles.items()
    }
    return _summed(named, groups)


def _summed(names: Mapping[str, str], groups: Mapping[str, _Bytes]) -> dict[str, _Bytes]:
    """The sums of the bytes of groups with the same new name."""
    members: dict[str, list[_Bytes]] = {}
    for group, name in names.items():
        members.setdefault(name, []).append(groups[group])
    return {name: _total(sent) for name, sent in members.items()}


def _total(parts: Iterable[_Bytes]) -> _Bytes:
    down, up = zip(*parts, strict=True)
    return sum(down), sum(up)
