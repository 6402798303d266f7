"""A mean or a local rule that breaks a contract is told by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import pytest
import torch
from tests.testing.broken import broken
from torch import Generator, Tensor

from fedelta.aggregation.base import Mean, Update
from fedelta.aggregation.means import Weighted
from fedelta.params import Params, ParamSpec
from fedelta.settings import Settings
from fedelta.testing import check


class Adding:
    """A plain mean under way.

    Args:
        change: of the tensors that it has, by name to all values, once all have come.
    """

    def __init__(self, change: Callable[[dict[str, list[Tensor]]], Params]) -> None:
        self._change = change
        self._values: dict[str, list[Tensor]] = {}

    def add(self, update: Update) -> None:
        for name, tensor in update.delta.items():
            self._values.setdefault(name, []).append(tensor)

    def finish(self, generator: Generator) -> Params:
        return self._change(self._values)


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).double().mean(0)


def means(values: dict[str, list[Tensor]]) -> Params:
    return {name: mean(tensors) for name, tensors in values.items()}


class Plain(Mean):
    """The mean of every coordinate."""

    name: Literal["mine"] = "mine"
    change: ClassVar[Callable[[dict[str, list[Tensor]]], Params]] = staticmethod(means)

    @property
    def of_statistics(self) -> Weighted:
        return Weighted()

    def start(self, spec: ParamSpec) -> Adding:
        return Adding(self.change)


def making(changed: Callable[[dict[str, list[Tensor]]], Params]) -> Plain:
    """The mean with another result."""

    class Making(Plain):
        change: ClassVar[Callable[[dict[str, list[Tensor]]], Params]] = staticmethod(changed)

    return Making()


def in_place(values: dict[str, list[Tensor]]) -> Params:
    return {name: mean([tensors[0].mul_(2), *tensors[1:]]) for name, tensors in values.items()}


def noisy(values: dict[str, list[Tensor]]) -> Params:
    return {name: tensor + torch.rand(tensor.shape) for name, tensor in means(values).items()}


_kept: list[Tensor] = []


def remembering(values: dict[str, list[Tensor]]) -> Params:
    _kept.append(values["third.scale"][0])
    return means(values) | {"third.scale": torch.stack(_kept).double().mean()}


class Summed(Plain):
    """With statistics that leave the values of the clients."""

    @property
    def of_statistics(self) -> Plain:
        return making(lambda values: {name: torch.stack(item).double().sum(0) for name, item in values.items()})


class Both(Plain):
    reads: ClassVar = "each"
    only_sums: ClassVar[bool] = True


class Unsaid(Plain):
    """Divides by the number of the other clients, and does not say that there have to be some."""

    change: ClassVar = staticmethod(
        lambda values: {name: mean(tensors) / (len(tensors) - 1) for name, tensors in values.items()}
    )


GIVES = "it gives float64 tensors of the names and shapes that were sent"


@pytest.mark.parametrize(
    ("mine", "sentence", "problem"),
    [
        (making(lambda values: {"first.bias": mean(values["first.bias"])}), GIVES, "It gives ['first.bias'], and"),
        (making(lambda values: {name: item.float() for name, item in means(values).items()}), GIVES, "torch.float32"),
        (making(lambda values: {name: item.sum() for name, item in means(values).items()}), GIVES, "expected"),
        (making(lambda values: {name: item / 0 for name, item in means(values).items()}), GIVES, "is not finite"),
        (making(in_place), "it does not change the updates", "The update of client 0 was changed"),
        (
            making(lambda values: {name: item[-1].double() for name, item in values.items()}),
            "it does not matter which client comes first", "when the same updates come in another order",
        ),
        (making(noisy), "each round begins anew", "draws from the global generator of torch"),
        (making(remembering), "each round begins anew", "`third.scale` differs"),
        (
            making(lambda values: {name: item + 1 for name, item in means(values).items()}),
            "zeros have the mean zero", "The mean of zeros is not zero for ['first.weight'",
        ),
        (
            making(lambda values: {name: -item for name, item in means(values).items()}),
            "it points where all clients point", "the mean is -1 times it",
        ),
        (Unsaid(), "it works with as few clients as it says", "Of 1 clients the mean of ['first.weight'"),
        (Summed(), "statistics have a mean too", "lies outside of the values of the clients"),
        (Both(), "what it needs of updates is one of two words", "`only_sums` is True, but it reads each update"),
    ],
)  # fmt: skip
def test_a_broken_mean_breaks_its_contract(mine: Plain, sentence: str, problem: str):
    assert problem in broken(mine, only=sentence)[sentence]


def test_a_mean_that_keeps_every_contract_passes():
    check(Plain)


class Damped(Settings):
    """Half of every gradient."""

    name: Literal["damped"] = "damped"

    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        grads_KP.mul_(0.5)


class Returning(Damped):
    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> Tensor:
        return 0.5 * grads_KP


class Moving(Damped):
    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        values_KP.sub_(grads_KP)


class Anchoring(Damped):
    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        anchors_KP.copy_(values_KP)


class Dividing(Damped):
    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        grads_KP.div_(values_KP - values_KP)


class Shared(Damped):
    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        grads_KP.sub_(grads_KP.mean(0))


class Noisy(Damped):
    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        grads_KP.add_(torch.randn(grads_KP.shape))


_steps: list[int] = []


class Counting(Damped):
    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        _steps.append(1)
        grads_KP.mul_(1 / len(_steps))


IN_PLACE = "it changes gradients in place and nothing else"


@pytest.mark.parametrize(
    ("rule", "sentence", "problem"),
    [
        (Returning(), IN_PLACE, "It returns Tensor, which nothing reads"),
        (Moving(), IN_PLACE, "It changes values"),
        (Anchoring(), IN_PLACE, "It changes anchors"),
        (Dividing(), IN_PLACE, "gradients that are not finite"),
        (Shared(), "lanes do not mix", "gets another correction than alone"),
        (Noisy(), "equal inputs give equal bits", "draws from the global generator of torch"),
        (Counting(), "equal inputs give equal bits", "another correction of the same gradients"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Damped) else "",
)
def test_a_broken_local_rule_breaks_its_contract(rule: Damped, sentence: str, problem: str):
    assert problem in broken(rule, only=sentence)[sentence]


def test_a_local_rule_that_keeps_every_contract_passes():
    check(Damped)
