"""Matches the classes of an adapter with those of the data by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from fedelta.errors import AdapterError, listed
from fedelta.inference.adapter import SavedAdapter
from fedelta.inference.directory import SETTINGS
from fedelta.inference.fit import class_axes_of
from fedelta.inference.layout import is_pair
from fedelta.models.hub import Backbone
from fedelta.tasks.class_names import order_of

logger = logging.getLogger("fedelta")


def check_classes(adapter: SavedAdapter, class_names: Sequence[str]) -> None:
    """Refuses an adapter that was trained for other classes than those of the data.

    Args:
        adapter: what to check; passes if its classes are unknown.
        class_names: of the data, in label order.

    Raises:
        AdapterError: the classes differ; shows both lists and the first difference.
    """
    adapter_names, names = adapter.class_names, tuple(class_names)
    if adapter_names is None or order_of(adapter_names, names) is not None:
        return
    label = next((i for i, (a, b) in enumerate(zip(adapter_names, names, strict=False)) if a != b), None)
    difference = "" if label is None else f" Label {label} is {adapter_names[label]!r} there and {names[label]!r} here."
    raise AdapterError(
        f"the adapter was trained for other classes than those of the data: expected {len(adapter_names)} classes "
        f"({listed(adapter_names)}), found {len(names)} ({listed(names)}).{difference}",
        hint="use data with the adapter's classes; to start from its head anyway, set `class_names` to null in its "
        f"`{SETTINGS}`.",
    )


def in_order(adapter: SavedAdapter, class_names: Sequence[str], backbone: Backbone) -> SavedAdapter:
    """The adapter with the rows of its head in the order of the data's classes.

    Args:
        adapter: with the layer names of `backbone`, and the classes of the data in any order.
        class_names: of the data, in label order.
        backbone: before any tuning method is applied; not modified.
    """
    old, new = adapter.class_names, tuple(class_names)
    if old is None:
        if new and not all(map(is_pair, adapter.params)):
            logger.warning(
                "the adapter does not name the classes it was trained for: they are assumed to be %s, in this order.",
                listed(new),
            )
        return adapter
    order = order_of(old, new)
    if order is None or order == tuple(range(len(new))):
        return adapter
    logger.warning(
        "the adapter has the classes in another order (%s); its rows are reordered to match the data (%s).",
        listed(old),
        listed(new),
    )
    rows = torch.tensor(order)
    axes = class_axes_of(adapter.tuning, backbone)
    params = {
        name: tensor.index_select(axes[name], rows) if name in axes else tensor
        for name, tensor in adapter.params.items()
    }
    return replace(adapter, params=params, class_names=new)
