from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import tensor

from fedelta.errors import ConfigError
from fedelta.tasks.imbalance import balanced, counts, focal, in_order, odds


def test_weights_follow_from_counts_of_all_clients():
    # 2 and 4 rows of 6, the third class in no row: 6 / (3 * 2) = 1, 6 / (3 * 4) = 1/2.
    names = ("a", "b", "c")
    statistics = counts([2, 1, 0], 3, names) + counts([0, 3, 0], 3, names)
    assert balanced(statistics, names) == {"a": 1.0, "b": 0.5, "c": 1.0}
    # Without and with the label: 4 and 2, 2 and 4.
    assert odds(statistics, names) == {"a": 2.0, "b": 0.5, "c": 1.0}


def test_the_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0, 0, 0, 1, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert list(balanced(counts([3, 1, 2], 6, "abc"), "abc").values()) == pytest.approx(list(expected))


def test_weights_are_in_label_order_and_1_where_none_is_given():
    assert list(in_order("task.class_weights", {"b": 2.0}, ("a", "b")).items()) == [("a", 1.0), ("b", 2.0)]
    with pytest.raises(ConfigError, match=r"`task.class_weights` names 'x', but there are 'a', 'b'"):
        in_order("task.class_weights", {"x": 2.0}, ("a", "b"))


def test_the_focal_loss_by_hand():
    # p = 1/4: (3/4)^2 ln 4; a sure answer loses nothing, and its gradient is finite.
    losses = tensor([math.log(4), 0.0], requires_grad=True)
    assert focal(losses, 0.0) is losses
    assert focal(losses, 2.0).tolist() == pytest.approx([9 / 16 * math.log(4), 0.0])
    for gamma in (0.5, 2.0):
        (gradient,) = torch.autograd.grad(focal(losses, gamma).sum(), losses)
        assert gradient.isfinite().all()
