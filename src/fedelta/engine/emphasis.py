"""Makes every layer of a model count, for a trial on a few rows.

In a model that starts from random values, attention is nearly uniform, and a block adds little to what goes past it.
Outputs and gradients then hardly show what a layer computes, although training may later make much of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fedelta.tuning.lanes import Wrapper


@contextmanager
def emphasised(
    module: nn.Module, attention: tuple[nn.Module, nn.Module] | None, run: Callable[[], object]
) -> Iterator[None]:
    """A context in which the inputs of layers with small outputs are multiplied, for a size of one.

    Args:
        module: the model.
        attention: layers that compute queries and keys. The queries are multiplied until the scores have a size of one,
            and the keys are left as they are. None if there are no such layers.
        run: runs the model once.
    """
    keys = None if attention is None else attention[1]
    sizes = _sizes(list(_layers(module)), keys, run)
    if attention is not None and sizes.keys() >= set(attention):
        sizes[attention[0]] *= sizes[attention[1]]
    with ExitStack() as hooks:
        for layer, size in sizes.items():
            if layer is not keys:
                hooks.callback(layer.register_forward_pre_hook(partial(_multiply, _factor(size))).remove)
        yield


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The modules with matrices; of one that a tuning method has wrapped, only the wrapper."""
    has_matrices = _has_matrices(module)
    if has_matrices:
        yield module
    is_wrapper = has_matrices and isinstance(module, Wrapper)
    for child in module.children():
        if not (is_wrapper and child is module.base and _has_matrices(child)):
            yield from _layers(child)


def _has_matrices(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def _sizes(layers: list[nn.Module], keys: nn.Module | None, run: Callable[[], object]) -> dict[nn.Module, float]:
    """The root mean square of the output of each layer that is called, if those before it are multiplied."""
    sizes: dict[nn.Module, float] = {}

    def measure(layer: nn.Module, _args: object, output: object) -> Tensor | None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        sizes[layer] = float(output.double().square().mean().sqrt())
        return None if layer is keys else output * _factor(sizes[layer])

    with ExitStack() as hooks, torch.no_grad():
        for layer in layers:
            hooks.callback(layer.register_forward_hook(measure).remove)
        run()
    return sizes


def _factor(size: float) -> float:
    return 1 / size if 0 < size < 1 else 1.0


def _multiply(factor: float, _layer: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
    match args:
        case (Tensor() as first, *others) if first.is_floating_point():
            return (first * factor, *others)
    return args
