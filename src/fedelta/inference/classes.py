"""The classes of an adapter and those of the data, brought together by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from fedelta.errors import AdapterError, listed
from fedelta.inference.adapter import Adapter
from fedelta.inference.directory import OWN
from fedelta.inference.fit import class_axes_of
from fedelta.inference.layout import is_pair
from fedelta.models.hub import Backbone
from fedelta.tasks.class_names import order_of

logger = logging.getLogger("fedelta")


def check_classes(adapter: Adapter, class_names: Sequence[str]) -> None:
    """Refuses an adapter whose labels mean other classes than those of the data.

    Args:
        adapter: what to check; one that does not say its classes passes.
        class_names: of the data, in label order.

    Raises:
        AdapterError: not the same classes in any order; names both sides and the first difference.
    """
    theirs, ours = adapter.class_names, tuple(class_names)
    if theirs is None or order_of(theirs, ours) is not None:
        return
    label = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
    difference = "" if label is None else f" Label {label} is {theirs[label]!r} there and {ours[label]!r} here."
    raise AdapterError(
        f"the adapter was trained for other classes than the data have: expected {len(theirs)} classes "
        f"({listed(theirs)}), found {len(ours)} ({listed(ours)}).{difference}",
        hint="give data with the adapter's classes; to start from its head all the same, set `class_names` to null in "
        f"its `{OWN}`.",
    )


def in_order(adapter: Adapter, class_names: Sequence[str], backbone: Backbone) -> Adapter:
    """The adapter with its classes in the order of the data: its head gets their rows.

    Args:
        adapter: with the names of the layers of `backbone`, and the classes of the data in some order.
        class_names: of the data, in label order.
        backbone: before any tuning method is applied; it stays as it is.
    """
    theirs, ours = adapter.class_names, tuple(class_names)
    if theirs is None:
        if ours and not all(map(is_pair, adapter.params)):
            logger.warning(
                "the adapter does not say which classes it was trained for: its head is taken for that of %s, in this "
                "order.",
                listed(ours),
            )
        return adapter
    order = order_of(theirs, ours)
    if order is None or order == tuple(range(len(ours))):
        return adapter
    logger.warning(
        "the adapter has the classes in another order (%s); its rows are put into that of the data (%s).",
        listed(theirs),
        listed(ours),
    )
    rows = torch.tensor(order)
    axes = class_axes_of(adapter.tuning, backbone)
    params = {
        name: tensor.index_select(axes[name], rows) if name in axes else tensor
        for name, tensor in adapter.params.items()
    }
    return replace(adapter, params=params, class_names=ours)
