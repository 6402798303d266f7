"""What every mean, local rule, codec, task and partitioner keeps."""

from __future__ import annotations

import pytest
from tests.data.test_division import EXAMPLES

from fedelta import catalog
from fedelta.aggregation.means import Normalised, UniformDeltas
from fedelta.settings import Settings
from fedelta.tasks.classification import Classification
from fedelta.tasks.multi_label import MultiLabel
from fedelta.tasks.regression import Regression
from fedelta.testing import check

# Of each kind every name, and what no configuration names.
VALUES: dict[str, list[Settings]] = {
    "mean": [*(kind() for kind in catalog.MEANS.values()), Normalised(), UniformDeltas()],
    "local rule": [kind() for kind in catalog.LOCAL_RULES.values()],
    "codec": [kind(name=name) for name, kind in catalog.CODECS.items()],
    "task": [
        *(kind() for kind in catalog.TASKS.values()),
        Regression(offset=2.0, scale=3.0),
        Classification(class_weights="balanced"),
        Classification(class_weights={"c": 3.0}, focal_gamma=2.0),
        MultiLabel(pos_weight="balanced", threshold=0.3),
        MultiLabel(pos_weight=2.0, focal_gamma=1.0),
    ],
    "partitioner": [EXAMPLES[name] for name in catalog.PARTITIONERS],
}


@pytest.mark.parametrize(
    "value", [pytest.param(value, id=f"{kind}-{value.name}") for kind, values in VALUES.items() for value in values]
)
def test_a_value_keeps_every_contract_of_its_kind(value: Settings):
    check(value)
