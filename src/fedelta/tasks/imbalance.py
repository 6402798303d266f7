"""Counts of classes that clients share as sums, weights that follow from them, and the focal loss.

    balanced weight of a class = N / (C * N_class),    focal loss = (1 - p)^gamma * cross-entropy

p is the probability of the true class. Weights are those of scikit-learn's `class_weight="balanced"`.

Source: Lin et al. 2017 (arXiv 1708.02002), equation 4, for the focal loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat
from torch import Tensor

from fedelta.errors import ConfigError, listed
from fedelta.tasks.base import Sums

Positive = Annotated[FiniteFloat, Field(gt=0)]
Weights = Literal["none", "balanced"] | dict[str, Positive]
Gamma = Annotated[FiniteFloat, Field(ge=0, le=10)]


def counts(numbers: Sequence[float], num_rows: int, class_names: Sequence[str]) -> Sums:
    """The number of rows of each class among `num_rows`, to be added over clients."""
    return Sums(
        {f"rows of {name}": (float(number), float(num_rows)) for name, number in zip(class_names, numbers, strict=True)}
    )


def balanced(statistics: Sums, class_names: Sequence[str]) -> dict[str, float]:
    """The weight of each class with which all classes count alike; 1 for a class without rows."""
    weights = {}
    for name in class_names:
        number, total = statistics.totals.get(f"rows of {name}", (0.0, 0.0))
        weights[name] = total / (len(class_names) * number) if number else 1.0
    return weights


def odds(statistics: Sums, class_names: Sequence[str]) -> dict[str, float]:
    """For each label the rows without it by those with it; 1 for a label that no row has, or every row."""
    weights = {}
    for name in class_names:
        number, total = statistics.totals.get(f"rows of {name}", (0.0, 0.0))
        weights[name] = (total - number) / number if 0 < number < total else 1.0
    return weights


def in_order(key: str, weights: Mapping[str, float], class_names: Sequence[str]) -> dict[str, float]:
    """A weight for each class, in label order; 1 for those that are not named.

    Raises:
        ConfigError: `weights`, the value of `key`, names a class that there is not.
    """
    if unknown := [name for name in weights if name not in class_names]:
        problem = f"`{key}` names {listed(unknown)}, but there are {listed(list(class_names))}"
        raise ConfigError([problem], hint="write the names as `fedelta check` shows them.")
    return {name: weights.get(name, 1.0) for name in class_names}


def focal(cross_entropies: Tensor, gamma: float) -> Tensor:
    """The focal loss of each cross-entropy -log(p); itself for `gamma` = 0."""
    if gamma == 0:
        return cross_entropies
    # Not down to 0, where the gradient of a power below 1 is infinite.
    return (-(-cross_entropies).expm1()).clamp(min=1e-12) ** gamma * cross_entropies
