"""Adapters and data that name the same classes in another order, or other classes."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from tests.inference.adapters import CLASS_NAMES, adapter_of, backbone_of, inputs_of, our_logits

from fedelta.errors import AdapterError
from fedelta.inference.adapter import SavedAdapter
from fedelta.inference.classes import check_classes, in_order
from fedelta.tuning.accumulator import Accumulator
from fedelta.tuning.bias import Bias
from fedelta.tuning.combined import Combined
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lora import Lora
from fedelta.tuning.parallel import Parallel

ORDER = (2, 0, 1)
OURS = tuple(CLASS_NAMES[label] for label in ORDER)
CASES = [
    ("vit", Lora(r=2)),
    ("vit", Full()),
    ("vit", Accumulator(num_heads=2, mlp_width=8, head_width=8)),
    ("vit", Combined(methods=(Bias(), Lora(r=2)))),
    ("roberta", Head()),
    ("distilbert", Lora(r=2)),
    ("fedelta_resnet", Parallel()),
]


@pytest.mark.parametrize(("family", "tuning"), CASES, ids=[f"{family}-{tuning.name}" for family, tuning in CASES])
def test_the_head_of_an_adapter_gets_the_order_of_the_data(family, tuning, checkpoint, caplog):
    base = checkpoint(family)
    adapter = adapter_of(tuning, base)
    expected = our_logits(adapter, backbone_of(base), inputs_of(family))[:, ORDER]
    check_classes(adapter, OURS)
    turned = in_order(adapter, OURS, backbone_of(base, OURS))
    assert turned.class_names == OURS
    assert "the adapter has the classes in another order ('cat', 'dog', 'owl')" in caplog.text
    logits = our_logits(turned, backbone_of(base, OURS), inputs_of(family))
    torch.testing.assert_close(logits, expected)


def test_an_adapter_without_a_head_uses_that_of_the_checkpoint_by_name(checkpoint):
    base, tuning = checkpoint("vit"), Lora(r=2, train_head=False)
    adapter = adapter_of(tuning, base)
    expected = our_logits(adapter, backbone_of(base), inputs_of("vit"))[:, ORDER]
    turned = in_order(adapter, OURS, backbone_of(base, OURS))
    torch.testing.assert_close(our_logits(turned, backbone_of(base, OURS), inputs_of("vit")), expected)


def test_the_same_classes_in_the_same_order_leave_the_adapter_as_it_is(checkpoint, caplog):
    base = checkpoint("vit")
    adapter = adapter_of(Head(), base)
    assert in_order(adapter, CLASS_NAMES, backbone_of(base)) is adapter
    assert not caplog.records


def test_an_adapter_that_does_not_say_its_classes_is_taken_in_the_order_of_the_data(checkpoint, caplog):
    base = checkpoint("vit")
    adapter = replace(adapter_of(Lora(r=2), base), class_names=None)
    with caplog.at_level(logging.WARNING):
        assert in_order(adapter, OURS, backbone_of(base)) is adapter
    assert "does not name the classes it was trained for: they are assumed to be 'owl', 'cat'" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("cat", "owl"),
            (
                "trained for other classes than those of the data: expected 2 classes ('cat', 'owl'), found 2 ('cat', "
                "'dog'). Label 1 is 'owl' there and 'dog' here.\nhint: use data with the adapter's classes;"
            ),
        ),
        (("0", "1"), "expected 2 classes ('0', '1'), found 2 ('cat', 'dog'). Label 0 is '0' there and 'cat' here."),
        (("cat", "dog", "owl"), "expected 3 classes ('cat', 'dog', 'owl'), found 2 ('cat', 'dog').\nhint: "),
    ],
)
def test_other_classes_than_the_adapters_are_refused(names, message):
    with pytest.raises(AdapterError) as caught:
        check_classes(SavedAdapter(Head(), {}, "some/base", names), ["cat", "dog"])
    assert message in str(caught.value)
    assert "set `class_names` to null in its `fedelta.json`" in str(caught.value)
