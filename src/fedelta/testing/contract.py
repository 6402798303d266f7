"""A contract: one promise of a protocol, as a check with a sentence for a name."""

from __future__ import annotations

import json
import random  # noqa: TID251  only to see that it is left alone
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fedelta.errors import ContractError
from fedelta.settings import Settings
from fedelta.tuning.combined import expand

Trial = TypeVar("Trial")
Method = TypeVar("Method")


class BreachError(AssertionError):
    """How a contract is broken: raised by its check, in words that follow its sentence."""


@dataclass(frozen=True)
class Contract:
    """One promise, tried when it is called.

    Args:
        subject: what is tried, such as `scale on vit`.
        sentence: what has to hold.
        check: returns where it holds, and raises `BreachError` where it does not.
    """

    subject: str
    sentence: str
    check: Callable[[], None]

    def __str__(self) -> str:
        return f"{self.subject}: {self.sentence}"

    def __call__(self) -> None:
        """Tries the contract.

        Raises:
            ContractError: it does not hold; says how.
        """
        try:
            self.check()
        except BreachError as problem:
            raise ContractError(f"{self.subject} breaks a contract: {self.sentence}. {problem}") from None
        except Exception as error:  # code of a plug-in may raise anything
            raise ContractError(f"{self.subject} breaks a contract: {self.sentence}. {_ended(error)}") from error


def sentence_of(check: Callable[..., None]) -> str:
    """The name of a check in words."""
    return check.__name__.replace("_", " ")


def contracts_for(subject: str, trial: Trial, checks: tuple[Callable[[Trial], None], ...]) -> list[Contract]:
    """A contract for each check of one trial."""

    def bound(check: Callable[[Trial], None]) -> Callable[[], None]:
        return lambda: check(trial)

    return [Contract(subject, sentence_of(check), bound(check)) for check in checks]


def require(holds: bool, problem: str) -> None:
    """Raises `BreachError` with `problem` unless it holds."""
    if not holds:
        raise BreachError(problem)


def require_same_bits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], problem: str) -> None:
    """Requires equal names in equal order, types, shapes and bits; `problem` says what it means if they differ."""
    if list(tensors) != list(expected):
        raise BreachError(f"{problem}: the names are {list(tensors)}, expected {list(expected)}.")
    for name, tensor in tensors.items():
        if not same_bits(tensor, expected[name]):
            raise BreachError(f"{problem}: `{name}` differs.")


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have one type, one shape and the same values."""
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that later changes in place do not reach."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@contextmanager
def no_global_draws() -> Iterator[None]:
    """Requires that the block leaves every global generator as it was."""
    before = _global_states()
    yield
    drawn = [name for name, state in _global_states().items() if state != before[name]]
    if drawn:
        raise BreachError(
            f"It draws from the global generator of {', '.join(drawn)}; draw from the generator that it gets."
        )


def _global_states() -> dict[str, bytes]:
    numbers = np.random.get_state(legacy=False)  # noqa: NPY002  the global state is what is looked at
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(numbers["state"]["pos"]).encode() + numbers["state"]["key"].tobytes(),
        "random": repr(random.getstate()).encode(),
    }


def reread(method: Method) -> Method:
    """The method as its settings make it anew from a file."""
    if not isinstance(method, Settings):
        raise BreachError(f"{type(method).__name__} is no `Settings`, so that no configuration can hold it.")
    # `expand`: several tuning methods are written as "a+b".
    return type(method).model_validate_json(json.dumps(expand(method.model_dump(mode="json"))))


def its_settings_are_read_back_as_they_were_written(method: object) -> None:
    """By way of JSON, as in the configuration of a run and in `fedelta.json`."""
    try:
        again = reread(method)
    except ValueError as error:  # that of pydantic is one
        raise BreachError(f"What was written is refused when it is read: {error}") from error
    require(again == method, f"{method!r} comes back as {again!r}.")


def _ended(error: Exception) -> str:
    """The exception and the last line of code outside of this package that it went through."""
    places = [frame for frame in extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    place = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return f"It ends with {type(error).__name__}: {error}{place}."


def _is_ours(filename: str) -> bool:
    folder = Path(__file__).parents[1]
    return folder in Path(filename).parents or "site-packages" in filename or filename.startswith("<")
