"""A contract: one promise of a protocol, as a check whose name is a sentence."""

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
    """The difference that breaks a contract, raised by its check; the message follows the contract's sentence."""


@dataclass(frozen=True)
class Contract:
    """One promise of a protocol; calling it tries it.

    Args:
        subject: the tested method, such as `scale on vit`.
        sentence: the promise.
        check: raises `BreachError` if the promise is broken.
    """

    subject: str
    sentence: str
    check: Callable[[], None]

    def __str__(self) -> str:
        return f"{self.subject}: {self.sentence}"

    def __call__(self) -> None:
        """Tries the contract.

        Raises:
            ContractError: it is broken; names the difference.
        """
        try:
            self.check()
        except BreachError as problem:
            raise ContractError(f"{self.subject} breaks a contract: {self.sentence}. {problem}") from None
        except Exception as error:  # code of a plug-in may raise anything
            raise ContractError(f"{self.subject} breaks a contract: {self.sentence}. {_ended(error)}") from error


def sentence_of(check: Callable[..., None]) -> str:
    """The name of a check as a sentence."""
    return check.__name__.replace("_", " ")


def contracts_for(subject: str, trial: Trial, checks: tuple[Callable[[Trial], None], ...]) -> list[Contract]:
    """One contract per check, all on the same trial."""

    def bound(check: Callable[[Trial], None]) -> Callable[[], None]:
        return lambda: check(trial)

    return [Contract(subject, sentence_of(check), bound(check)) for check in checks]


def require(holds: bool, problem: str) -> None:
    """Raises `BreachError` with `problem` unless `holds`."""
    if not holds:
        raise BreachError(problem)


def require_same_bits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], problem: str) -> None:
    """Raises `BreachError` with `problem` unless names, order, types, shapes and bits are equal."""
    if list(tensors) != list(expected):
        raise BreachError(f"{problem}: the names are {list(tensors)}, expected {list(expected)}.")
    for name, tensor in tensors.items():
        if not same_bits(tensor, expected[name]):
            raise BreachError(f"{problem}: `{name}` differs.")


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same type, shape and values."""
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors, which later changes in place do not affect."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@contextmanager
def no_global_draws() -> Iterator[None]:
    """Context manager that raises `BreachError` if the state of a global generator changes."""
    before = _global_states()
    yield
    drawn = [name for name, state in _global_states().items() if state != before[name]]
    if drawn:
        raise BreachError(
            f"It draws from the global generator of {', '.join(drawn)}; draw from the generator that it gets."
        )


def _global_states() -> dict[str, bytes]:
    numbers = np.random.get_state(legacy=False)  # noqa: NPY002  to see that the global state does not change
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(numbers["state"]["pos"]).encode() + numbers["state"]["key"].tobytes(),
        "random": repr(random.getstate()).encode(),
    }


def reread(method: Method) -> Method:
    """The method, written as JSON and read back."""
    if not isinstance(method, Settings):
        raise BreachError(f"{type(method).__name__} is not derived from `Settings`, so no configuration can hold it.")
    # Combined tuning methods are written as "a+b".
    return type(method).model_validate_json(json.dumps(expand(method.model_dump(mode="json"))))


def its_settings_are_read_back_as_they_were_written(method: object) -> None:
    """Through JSON, as in the configuration of a run and in `fedelta.json`."""
    try:
        again = reread(method)
    except ValueError as error:  # includes pydantic's error
        raise BreachError(f"What was written is refused when it is read: {error}") from error
    require(again == method, f"{method!r} comes back as {again!r}.")


def _ended(error: Exception) -> str:
    """A message with the exception and the last line outside of this package in its traceback."""
    places = [frame for frame in extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    place = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return f"It ends with {type(error).__name__}: {error}{place}."


def _is_ours(filename: str) -> bool:
    folder = Path(__file__).parents[1]
    return folder in Path(filename).parents or "site-packages" in filename or filename.startswith("<")
