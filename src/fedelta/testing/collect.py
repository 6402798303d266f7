"""The contracts of a method or a plug-in file: one by one, or all at once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedelta.catalog import ALL, MEANS
from fedelta.errors import ContractError, InputError
from fedelta.settings import Settings
from fedelta.settings.loading import load_file
from fedelta.testing.contract import Contract, contracts_for, its_settings_are_read_back_as_they_were_written
from fedelta.testing.kinds import CONTRACTS

# A model for images, one for texts, and one with convolutions and batch norms.
MODELS = ("vit", "bert", "small-resnet")
# Arguments that partitioners need.
_NEEDED = {"num_clients": 5, "alpha": 0.5}


def contracts(what: object, *, models: Sequence[str] = MODELS) -> list[Contract]:
    """All contracts of a method, as callables.

    Args:
        what: a class of settings, or a value of one, or the path of a plug-in file for all its classes. A class is
            tried with its defaults, a strategy also with every mean.
        models: keys of `SMALL_MODELS`; a tuning method is tried on each of them that it fits.

    Raises:
        PluginError: the file cannot be used as a plug-in.
        InputError: a class needs arguments, or is of a kind without contracts.
    """
    if isinstance(what, str | Path):
        return [contract for kind in _classes_in(what) for contract in contracts(kind, models=models)]
    values = _values(what) if inspect.isclass(what) else iter([what])
    return [contract for value in values for contract in _contracts(value, models)]


def check(what: object, *, models: Sequence[str] = MODELS) -> None:
    """Tries all `contracts` of a method, or of all classes of a plug-in file.

    Raises:
        ContractError: contracts are broken; lists each of them with the difference.
        InputError: see `contracts`.
    """
    broken: dict[str, list[str]] = {}
    tried = contracts(what, models=models)
    for contract in tried:
        try:
            contract()
        except ContractError as error:
            problem = error.message.split(f"{contract.sentence}. ", 1)[-1]
            broken.setdefault(problem, []).append(str(contract))
    if broken:
        count = sum(map(len, broken.values()))
        lines = "".join(f"\n  - {'; '.join(sentences)}. {problem}" for problem, sentences in broken.items())
        raise ContractError(f"{count} of {len(tried)} contracts are broken:{lines}")


def _classes_in(path: str | Path) -> list[type]:
    """The classes of a plug-in file, each once, without those of kinds that have no contracts."""
    provider = load_file(path, ALL)
    added = (entry for registry in CONTRACTS for entry in registry.added.values())
    return list(dict.fromkeys(kind for kind, source in added if source == provider))


def _values(kind: type) -> Iterator[Any]:  # Any: a value of any kind
    """The values of a class to try."""
    if not issubclass(kind, Settings):
        raise InputError(f"{kind.__name__} is not derived from `fedelta.Settings`, so no configuration can name it.")
    fields = kind.model_fields
    arguments = {name: value for name, value in _NEEDED.items() if name in fields and fields[name].is_required()}
    try:
        value: Any = kind(**arguments)
    except ValidationError as error:
        raise InputError(
            f"{kind.__name__} cannot be made with its defaults: {error}", hint="pass a value of the class instead."
        ) from error
    yield value
    if "mean" in fields:
        means = (mean() for mean in MEANS.values())
        yield from (value.model_copy(update={"mean": mean}) for mean in means if mean != value.mean)


def _contracts(value: Any, models: Sequence[str]) -> list[Contract]:
    for registry, of_kind in CONTRACTS.items():
        if set(registry.kind.marks) <= set(dir(value)):
            subject = f"{type(value).__name__} {value.name!r}"
            if "mean" in type(value).model_fields:
                subject = f"{subject} with mean {value.mean.name!r}"
            written = contracts_for(subject, value, (its_settings_are_read_back_as_they_were_written,))
            return [*written, *of_kind(subject, value, models)]
    expected = ", or ".join(" and ".join(f"`{mark}`" for mark in registry.kind.marks) for registry in CONTRACTS)
    raise InputError(f"{type(value).__name__} is of no kind that has contracts, expected one with {expected}.")
