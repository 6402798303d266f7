"""The settings and inputs that a run started from, kept in every checkpoint to detect changes.

Settings are kept in full, so that a message can name the key that differs; weights, examples and files as digests.
The paths of data and weights are not kept, only digests of their content, so that they may be moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedelta.errors import CheckpointError
from fedelta.params import Params
from fedelta.record.files import Record, flatten
from fedelta.record.numbers import UNKNOWN

CLASS_NAMES = "class names"
_NUM_SHOWN = 5
# These do not change the result of a round: tracking may begin at any round, the initial adapter is in the checkpoint,
# worker processes compute the same bits, how long a server waits for its sites may be changed, and of data and weights
# the content is compared instead of the path.
_FREE = (
    "tracking.", "deployment.", "model.adapter", "model.source", "data.source", "data.test_source", "runtime.name",
    "runtime.workers",
)  # fmt: skip
_HELD_OUT = ("personalization.held_out_clients", "personalization.held_out")


@dataclass(frozen=True)
class Origin:
    """The settings and inputs that a run started from.

    Args:
        settings: dotted key to value, as text, of every setting that can change a result.
        inputs: name of an input, such as "test examples", to the digest of its content.
        files: name of each file of the run directory that never changes, to its digest.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def is_free(key: str) -> bool:
    """Whether the setting at a dotted key may be another one in every part of a run, as it changes no result."""
    return key.startswith(_FREE) or (key.startswith("personalization.") and key not in _HELD_OUT)


def settings_of(table: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a configuration, as in `config.toml`; Any: TOML values."""
    return {key: value for key, value in flatten(table) if not is_free(key)}


def other_settings(original: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """One sentence per setting that differs from the original one; if there are many, only the first ones."""
    keys = _different(original, current)
    shown = [
        f"`{key}` is {current.get(key, 'absent')} in `config.toml`, the run began with {original.get(key, 'none')}"
        for key in keys[:_NUM_SHOWN]
    ]
    return shown + ([f"and {len(keys) - _NUM_SHOWN} more settings"] if len(keys) > _NUM_SHOWN else [])


def _different(original: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """The keys of the settings that differ."""
    keys = dict.fromkeys([*original, *current])
    return [key for key in keys if _in_order(original.get(key)) != _in_order(current.get(key))]


def _in_order(text: str | None) -> str | None:
    """JSON with sorted keys, as TOML puts the tables of a list's item behind its values; any other text as it is."""
    if text is None:
        return None
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except ValueError:
        return text


def other_inputs(original: Mapping[str, str], current: Mapping[str, str], places: Mapping[str, str]) -> list[str]:
    """One sentence per input of `current` that differs from the original one.

    Args:
        original: digests of the run.
        current: digests of the inputs that were read now.
        places: the first word of an input, such as "test", to its source.
    """
    keys = [key for key, digest in current.items() if original.get(key, digest) != digest]
    return [f"the {key} {_where(key, places)}are not those that the run began with" for key in keys]


def refuse(what: str, problems: Collection[str]) -> None:
    """Raises one error with all `problems` of a run; does nothing without problems.

    Raises:
        CheckpointError: lists the problems.
    """
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise CheckpointError(
            f"{what}: belongs to another run, or its data changed:{lines}",
            hint="bring back what the run began with, from a copy for example; where the change is meant, start a new "
            "run with another `--out`.",
        )


def changed_files(run: Path, origin: Origin) -> list[str]:
    """One sentence per file of the run directory that has changed since the run started."""
    return [
        f"{str(run / name)!r} is not as the run wrote it when it began"
        for name, digest in origin.files.items()
        if not (run / name).is_file() or hashlib.sha256((run / name).read_bytes()).hexdigest() != digest
    ]


def digest_of_names(class_names: Sequence[str]) -> str:
    """SHA-256 of the class names in label order."""
    return hashlib.sha256(repr(tuple(class_names)).encode()).hexdigest()


def other_words(origin: Origin, written: Record, class_names: Sequence[str]) -> list[str]:
    """Messages about differences between `fedelta.json` in a run directory and the run.

    Args:
        origin: of the run.
        written: `seed` and `tuning` of the file.
        class_names: of the file.
    """
    original = {key: value for key, value in origin.settings.items() if key == "seed" or key.startswith("tuning.")}
    current = {key: value for key, value in flatten(written) if value != UNKNOWN}
    different = _different(original, current)
    if origin.inputs.get(CLASS_NAMES, "") != digest_of_names(class_names):
        different.append(CLASS_NAMES)
    return [f"`fedelta.json` does not say what the run wrote into it: {', '.join(different)}"] if different else []


def refuse_other_adapter(path: Path, trained: Params, loaded: Params) -> None:
    """Raises if the adapter in a run directory is not the result of the run.

    Args:
        path: of the adapter.
        trained: of the last checkpoint.
        loaded: of the adapter.

    Raises:
        CheckpointError: they differ.
    """
    different = [
        name
        for name in dict.fromkeys([*trained, *loaded])
        if name not in trained or name not in loaded or not torch.equal(trained[name], loaded[name])
    ]
    if different:
        refuse(
            f"adapter {str(path)!r}",
            [f"{len(different)} of {len(trained)} tensors differ from the run's checkpoint, first `{different[0]}`"],
        )


def _where(key: str, places: Mapping[str, str]) -> str:
    place = places.get(key.partition(" ")[0])
    return "" if place is None else f"({place}) "
