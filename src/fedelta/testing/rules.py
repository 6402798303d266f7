"""Contracts of local rules, tried on the gradients of three clients.

Shapes: K lanes, P tuned scalars.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedelta.seeds import stream
from fedelta.strategies.base import LocalRule
from fedelta.testing.contract import BreachError, no_global_draws, require, same_bits

_LANES, _SCALARS = 3, 24


@dataclass(frozen=True)
class RuleTrial:
    """A local rule and its inputs.

    Args:
        rule: the local rule to test.
    """

    rule: LocalRule

    def drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients, values and anchors [K, P]; always the same numbers."""
        grads, values, moves = (torch.randn(_LANES, _SCALARS, generator=stream(0, "rule", part)) for part in range(3))
        return grads, values, values - 0.1 * moves

    def corrected(self, lanes: slice = slice(None)) -> Tensor:
        """The gradients of these lanes, after the rule."""
        grads, values, anchors = (tensor[lanes].clone() for tensor in self.drawn())
        self.rule.correct(grads, values, anchors)
        return grads


def it_changes_gradients_in_place_and_nothing_else(trial: RuleTrial) -> None:
    """It returns nothing, and does not change values and anchors."""
    grads, values, anchors = trial.drawn()
    returned: object = trial.rule.correct(grads, values, anchors)  # type: ignore[func-returns-value]  # looked at
    if returned is not None:
        raise BreachError(f"It returns {type(returned).__name__}, which nothing reads; change `grads_KP` in place.")
    _, values_before, anchors_before = trial.drawn()
    require(same_bits(values, values_before), "It changes values.")
    require(same_bits(anchors, anchors_before), "It changes anchors.")
    require(bool(grads.isfinite().all()), "It makes gradients that are not finite.")


def lanes_do_not_mix(trial: RuleTrial) -> None:
    """Each client's correction is the same as alone."""
    together = trial.corrected()
    for lane in range(_LANES):
        alone = trial.corrected(slice(lane, lane + 1))[0]
        same = torch.allclose(together[lane], alone, rtol=1e-5, atol=1e-7)
        require(same, f"In lane {lane} of {_LANES} a client gets another correction than alone.")


def equal_inputs_give_equal_bits(trial: RuleTrial) -> None:
    """It has no state, and uses no global generator."""
    with no_global_draws():
        first, again = trial.corrected(), trial.corrected()
    require(same_bits(first, again), "The second step gives another correction of the same gradients.")


def a_part_of_the_lanes_may_be_in_use(trial: RuleTrial) -> None:
    """Rows of a larger matrix are changed in place."""
    grads, values, anchors = trial.drawn()
    trial.rule.correct(grads[:2], values[:2], anchors[:2])
    require(
        torch.allclose(grads[:2], trial.corrected(slice(0, 2))), "Views of the first lanes are not changed in place."
    )
    require(same_bits(grads[2], trial.drawn()[0][2]), "It changes a lane that is not in use.")


CHECKS: tuple[Callable[[RuleTrial], None], ...] = (
    it_changes_gradients_in_place_and_nothing_else,
    lanes_do_not_mix,
    equal_inputs_give_equal_bits,
    a_part_of_the_lanes_may_be_in_use,
)
