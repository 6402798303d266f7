"""Spares bfloat16 autocast what it would do again in every step to a frozen model.

Autocast rounds the weights of a linear layer in every pass, unless they are trained, and the output of a norm once for
every layer that reads it. Here frozen weights are rounded once, if the outputs keep their bits, and the output of a
frozen norm where it arises, if nothing reads it but what rounds it. Both is tried on a few rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedelta.engine.bank import LaneBank
from fedelta.seeds import stream
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.proof import exact, perturbed


@dataclass(frozen=True)
class Rounded:
    """A frozen tensor of a layer, as it is and rounded."""

    layer: nn.Module
    name: str
    whole: nn.Parameter
    rounded: nn.Parameter


@dataclass(frozen=True)
class Half:
    """What is rounded while it is active.

    Args:
        weights: frozen tensors.
        norms: whose outputs are rounded.
    """

    weights: Sequence[Rounded]
    norms: Sequence[nn.Module]

    @contextmanager
    def active(self) -> Iterator[None]:
        """A context in which the model computes with the rounded tensors."""
        handles = [norm.register_forward_hook(_rounded) for norm in self.norms]
        for weight in self.weights:
            weight.layer._parameters[weight.name] = weight.rounded
        try:
            yield
        finally:
            for weight in self.weights:
                weight.layer._parameters[weight.name] = weight.whole
            for handle in handles:
                handle.remove()


def find_half(module: nn.Module, bank: LaneBank, lanes: Lanes, outputs: Callable[[], Sequence[Tensor]]) -> Half:
    """What of `module` can be rounded beforehand.

    Args:
        module: the model with the tuning method applied.
        bank: its tuned tensors, which are left as they are.
        lanes: of the tuned modules.
        outputs: runs the model under autocast on a few rows.
    """
    weights = [
        Rounded(layer, name, weight, nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False))
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) or type(layer).__name__ == "Conv1D"
        for name, weight in layer.named_parameters(recurse=False)
        if not weight.requires_grad and weight.dtype == torch.float32
    ]
    active, lanes.active = lanes.active, 1
    try:
        with torch.no_grad(), exact(), bank.unchanged():
            # Untrained, many tuned tensors are zero and would hide a difference.
            bank.load(0, perturbed(bank.read(0), bank.spec, stream(0, "proof", "half")))
            if not _agrees(Half(weights, ()), outputs):
                weights = []
            return Half(weights, _only_rounded(module, outputs))
    finally:
        lanes.active = active


def _agrees(half: Half, outputs: Callable[[], Sequence[Tensor]]) -> bool:
    """Whether the model gives the same bits with rounded tensors."""
    expected = outputs()
    try:
        with half.active():
            return all(map(torch.equal, outputs(), expected))
    except Exception:  # noqa: BLE001 the model's own code may refuse tensors of another dtype in any way
        return False


def _only_rounded(module: nn.Module, outputs: Callable[[], Sequence[Tensor]]) -> list[nn.Module]:
    """The frozen norms whose output is read by nothing but what rounds it to bfloat16."""
    norms = [
        layer
        for layer in module.modules()
        if type(layer).__name__.endswith("Norm") and not any(tensor.requires_grad for tensor in layer.parameters())
    ]
    readers = _Readers()
    handles = [norm.register_forward_hook(readers.note) for norm in norms]
    try:
        with readers:
            outputs()
    finally:
        for handle in handles:
            handle.remove()
    return [norm for norm in norms if norm in readers.norms - readers.read_whole]


class _Readers(TorchDispatchMode):
    """Watches what reads the outputs of norms.

    Attributes:
        norms: that have run and given float32.
        read_whole: those with another reader than the rounding to bfloat16.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.norms: set[nn.Module] = set()
        self.read_whole: set[nn.Module] = set()
        self._outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # by address; kept, so that none is used again

    def note(self, norm: nn.Module, _inputs: object, output: object) -> None:
        """A forward hook of norms."""
        if isinstance(output, Tensor) and output.dtype == torch.float32:
            self.norms.add(norm)
            self._outputs[_address(output)] = (norm, output)

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs the operation `func`."""
        result = func(*args, **(kwargs or {}))
        is_rounding = func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16
        for tensor in tree_leaves((args, kwargs)) if not is_rounding else ():
            if isinstance(tensor, Tensor) and _address(tensor) in self._outputs and not _are_views(result, tensor):
                self.read_whole.add(self._outputs[_address(tensor)][0])
        return result


def _address(tensor: Tensor) -> int:
    """Of the memory that it shares with its views."""
    return tensor.untyped_storage().data_ptr()


def _are_views(result: object, tensor: Tensor) -> bool:
    """Whether the result of an operation is `tensor` seen in another way."""
    return all(isinstance(part, Tensor) and _address(part) == _address(tensor) for part in tree_leaves(result))


def _rounded(_layer: nn.Module, _inputs: object, output: object) -> Tensor | None:
    """The output of a norm in bfloat16, if autocast has made it float32."""
    if isinstance(output, Tensor) and output.dtype == torch.float32:
        return output.to(torch.bfloat16)
    return None
