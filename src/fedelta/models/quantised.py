"""Frozen layers whose weights are stored in 8 or 4 bits, by libraries that transformers knows.

`int8` is torchao's weight-only quantisation, `nf4` that of bitsandbytes. Both compute in float32 (or the precision of
the model) with weights that are dequantised for each product, so a row has the same output alone as in a batch, and
gradients pass through. Others were tried and are not offered: torchao's dynamic quantisation gives wrong gradients, its
int4 does not run in float32 on a CPU, bitsandbytes' int8 makes a row depend on its batch, and quanto drops low-rank
pairs when it merges them. `settle_layers` tries what is offered on the layers themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from fedelta.errors import ModelError
from fedelta.models.layers import is_quantised
from fedelta.models.source import Quantisation

_LIBRARY = {"int8": "torchao", "nf4": "bitsandbytes"}
_TOLERANCE = 1e-3  # of a product, relative to its largest element


def quantised_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The quantised layers of a model, with their paths."""
    return ((path, layer) for path, layer in module.named_modules() if is_quantised(layer))


def quantiser(choice: Quantisation) -> Any:  # Any: a configuration of transformers
    """What `from_pretrained` takes as `quantization_config`; None for none.

    Raises:
        ModelError: the library is not installed.
    """
    if choice == "none":
        return None
    library = _LIBRARY[choice]
    if find_spec(library) is None:
        raise ModelError(
            f"`model.quantization` is {choice!r}, which needs {library}; it is not installed.",
            hint=f"`pip install 'fedelta[quantized]'` or `pip install {library}`, or leave the key out.",
        )
    import transformers

    if choice == "nf4":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    return transformers.TorchAoConfig(import_module("torchao.quantization").Int8WeightOnlyConfig())


def plain_weight(layer: nn.Module) -> Tensor:
    """The weight of a quantised layer as numbers, [O, I]: what it makes of the unit vectors."""
    weight = layer.get_parameter("weight")
    with torch.no_grad():
        units = torch.eye(int(vars(layer)["in_features"]), device=weight.device)
        outputs: Tensor = layer(units).float()
        bias = layer._parameters.get("bias")
        return (outputs if bias is None else outputs - bias.float()).T


def settle_layers(module: nn.Module) -> None:
    """Makes the quantised layers of a model in evaluation mode compute as in training, and tries them (`check_layers`).

    In evaluation on a CPU with bfloat16 units, bitsandbytes packs a weight anew in place, for products in bfloat16. The
    flag has no other effect on these layers.
    """
    for _, layer in quantised_layers(module):
        layer.training = True
    check_layers(module)


def check_layers(module: nn.Module) -> None:
    """Tries one layer of each size: a row alone and in a batch, and the gradient of the input.

    Raises:
        ModelError: names the layer and the difference.
    """
    tried: set[tuple[int, int]] = set()
    for path, layer in quantised_layers(module):
        size = (int(vars(layer)["in_features"]), int(vars(layer)["out_features"]))
        if size in tried:
            continue
        tried.add(size)
        if problem := _problem(layer, size[0]):
            raise ModelError(
                f"the quantised layer `{path}` of {type(module).__name__} {problem}.",
                hint="use another version of the library, or leave out `model.quantization`.",
            )


def _problem(layer: nn.Module, width: int) -> str | None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, width, generator=generator).to(layer.get_parameter("weight").device).requires_grad_()
    y: Tensor = layer(x)
    with torch.no_grad():
        alone: Tensor = layer(x[:1])
    if _gap(y[:1], alone) > _TOLERANCE:
        return f"gives another output for a row in a batch than alone (by {_gap(y[:1], alone):.1e})"
    direction = torch.randn(y.shape, generator=generator).to(y.device, y.dtype)
    (grad,) = torch.autograd.grad(y, x, direction)
    expected = direction.float() @ plain_weight(layer)
    if _gap(grad, expected) > _TOLERANCE:
        return f"gives a wrong gradient of its input (by {_gap(grad, expected):.1e})"
    return None


def _gap(left: Tensor, right: Tensor) -> float:
    return float((left.detach().float() - right.detach().float()).abs().max() / right.detach().float().abs().max())
