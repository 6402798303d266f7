"""Gradients of wide dense layers as products of two thin matrices, and weights that change by such products.

The gradient of a dense layer's weight is a product: of the gradient of its outputs, transposed, and its inputs. Where a
batch has few rows, both are much smaller than the weight, whose gradient need then never be written out. Plain gradient
descent does not even add it to the weight W: after some steps the layer is

    y = W x + b + A (B x),    A [O, R] and B [R, I] with the R rows of all batches so far,

which costs little as long as R is small, and A B is what the client has changed. So a weight that is larger than the
cache of a core is read twice in a step, forwards and backwards, and never written.

The model runs as it is. A hook adds A (B x), notes the inputs of a layer and where its outputs are in autograd's graph,
which then gives their gradient in place of the weight's. That these come to the same, because the model uses the weight
nowhere else, is tried on a few rows before training, with a part of every weight in A and B.

Shapes: N rows of a layer's inputs, R rows of all products, I features in, O features out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import nan
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.functional import linear

# Of a weight: a smaller one, and its gradient, stay in a core's own cache.
_FEWEST_SCALARS = 2**17
# Scalars of both matrices of a change, as a share of the weight's: so much more is computed in each pass.
_LARGEST_SHARE = 1 / 8


class Change:
    """What was added to the weight of a layer since it was loaded, as far as it is kept as a product.

    Attributes:
        dtype: of the weight.
        is_all: whether the weight itself is as it was loaded.
    """

    def __init__(self, weight: Tensor) -> None:
        num_outputs, num_inputs = weight.shape
        self._most_rows = int(weight.numel() * _LARGEST_SHARE / (num_outputs + num_inputs))
        self._left_RO = weight.new_empty(self._most_rows, num_outputs)
        self._right_RI = weight.new_empty(self._most_rows, num_inputs)
        self._num_rows = 0
        self.dtype = weight.dtype
        self._anchor: Callable[[], Tensor | None] = lambda: None
        self._version = 0.0
        self.is_all = False

    def restart(self, anchor: Tensor | None) -> None:
        """Forgets the change, because the weight was set to `anchor`; None: it may have any value."""
        self._num_rows, self.is_all = 0, anchor is not None
        if anchor is not None:
            # A weak reference, because the anchor may keep a whole download in memory.
            self._anchor, self._version = ref(anchor), times_written(anchor)

    def is_of(self, anchor: Tensor | None) -> bool:
        """Whether the weight itself still has the values of `anchor`."""
        return (
            self.is_all and anchor is not None and self._anchor() is anchor and self._version == times_written(anchor)
        )

    def add(self, left_NO: Tensor, right_NI: Tensor, alpha: float) -> bool:
        """Adds `alpha` times a product; returns False, and does nothing, if it has too many rows."""
        end = self._num_rows + len(left_NO)
        if end > self._most_rows:
            return False
        torch.mul(left_NO, alpha, out=self._left_RO[self._num_rows : end])
        self._right_RI[self._num_rows : end] = right_NI
        self._num_rows = end
        return True

    def take_part_of(self, weight_OI: Tensor) -> None:
        """Makes a product with one row a change, and takes it away from the weight: the layer stays the same."""
        left_1O, right_1I = weight_OI[:, :1].T.clone(), weight_OI[:1].clone()
        alpha = 1 / float(weight_OI.square().mean().sqrt().clamp(min=1e-6))
        if self.add(left_1O, right_1I, alpha):
            weight_OI.addmm_(left_1O.T, right_1I, alpha=-alpha)
        self.is_all = False

    def settle(self, weight_OI: Tensor) -> None:
        """Adds the change to the weight."""
        if self._num_rows:
            weight_OI.addmm_(self._left_RO[: self._num_rows].T, self._right_RI[: self._num_rows])
        self._num_rows, self.is_all = 0, False

    def write(self, target_OI: Tensor) -> None:
        """Writes the change to a matrix."""
        torch.mm(self._left_RO[: self._num_rows].T, self._right_RI[: self._num_rows], out=target_OI)

    def outputs(self, inputs: Tensor) -> Tensor | None:
        """What the change adds to the outputs [..., O] for inputs [..., I]; None for nothing."""
        if not self._num_rows:
            return None
        return linear(inputs, self._right_RI[: self._num_rows]) @ self._left_RO[: self._num_rows]


@dataclass(frozen=True)
class Product:
    """The gradient of a weight: the product of `left_NO` [N, O], transposed, and `right_NI` [N, I].

    Args:
        left_NO: the gradient of the outputs.
        right_NI: the inputs.
        change: of the weight.
    """

    left_NO: Tensor  # noqa: N815  named like a matrix
    right_NI: Tensor  # noqa: N815  likewise
    change: Change

    def dense(self) -> Tensor:
        """The gradient as one row [1, O I], in new memory."""
        self.change.is_all = False
        return (self.left_NO.T @ self.right_NI).view(1, -1)

    def add_to(self, matrix_OI: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> None:
        """Makes a matrix `beta` times itself plus `alpha` times the gradient."""
        self.change.is_all = False
        matrix_OI.addmm_(self.left_NO.T, self.right_NI, alpha=alpha, beta=beta)

    def move(self, weight_OI: Tensor, alpha: float) -> None:
        """Adds `alpha` times the gradient to the weight, or to its change."""
        if not self.change.add(self.left_NO, self.right_NI, alpha):
            self.change.settle(weight_OI)
            if not self.change.add(self.left_NO, self.right_NI, alpha):
                self.add_to(weight_OI, alpha=alpha)


Gradient = Tensor | Product


def times_written(tensor: Tensor) -> float:
    """How often the memory of a tensor has been written to; not a number, unlike itself, if PyTorch does not count."""
    return nan if tensor.is_inference() else tensor._version


def dense(gradient: Gradient) -> Tensor:
    """The gradient as a matrix with a row for each lane."""
    return gradient.dense() if isinstance(gradient, Product) else gradient


@dataclass(frozen=True)
class Use:
    """How a dense layer was used.

    Args:
        inputs: of the layer [..., I].
        version: how often their memory had been written to.
        outputs: where the outputs [..., O] are in the graph.
        num_outputs: O.
    """

    inputs: Tensor
    version: int
    outputs: GradientEdge
    num_outputs: int

    def product(self, grad: Tensor | None, change: Change) -> Product:
        """The gradient of the weight for that of the outputs [..., O]; None: the loss does not depend on them."""
        right_NI = self.inputs.detach().reshape(-1, self.inputs.shape[-1])
        left_NO = right_NI.new_zeros(len(right_NI), self.num_outputs) if grad is None else grad
        return Product(left_NO.reshape(-1, self.num_outputs), right_NI, change)


class DenseLayers:
    """The wide dense layers of a model, and how each was used last.

    Args:
        module: the model.
        names: of the weights that are trained.

    Attributes:
        changes: of the weights, by name.
    """

    def __init__(self, module: nn.Module, names: Collection[str]) -> None:
        num_places = Counter(id(weight) for _, weight in module.named_parameters(remove_duplicate=False))
        self._layers = {
            name: layer
            for path, layer in module.named_modules()
            if (name := f"{path}.weight".lstrip(".")) in names and _is_wide(layer) and num_places[id(layer.weight)] == 1
        }
        self.changes = {name: Change(layer.get_parameter("weight").detach()) for name, layer in self._layers.items()}
        self._uses: dict[str, Use | None] = {}  # None: of one use the gradient is no product

    @property
    def in_use(self) -> set[str]:
        """The weights of the layers of which a use has been noted."""
        return {name for name, use in self._uses.items() if use is not None}

    def limit(self, names: Collection[str]) -> None:
        """From now on notes the layers of these weights only."""
        self._layers = {name: layer for name, layer in self._layers.items() if name in names}
        self.changes = {name: change for name, change in self.changes.items() if name in names}

    @torch.no_grad()
    def set_apart(self) -> None:
        """Makes a part of every weight a change, which the layers have in `noted` only; for a trial."""
        for name, layer in self._layers.items():
            self.changes[name].take_part_of(layer.get_parameter("weight").detach())

    @contextmanager
    def noted(self, *, also_thick: bool = False) -> Iterator[None]:
        """A context in which layers have their changes, and in which it is noted how they are used.

        Args:
            also_thick: also with so many rows that the matrices of the product are larger than the weight.
        """
        with ExitStack() as hooks:
            for name, layer in self._layers.items():
                hooks.callback(
                    layer.register_forward_hook(self._note(name, also_thick=also_thick), with_kwargs=True).remove
                )
            yield

    def take(self) -> dict[str, Use]:
        """The name of each weight whose gradient is one product, and how its layer was used; forgets them."""
        uses, self._uses = self._uses, {}
        # Autograd refuses to go on with inputs that were written to since, and shall say so itself.
        return {name: use for name, use in uses.items() if use is not None and use.inputs._version == use.version}

    def _note(self, name: str, *, also_thick: bool) -> Callable[..., Tensor]:  # ...: as torch calls a hook
        change = self.changes[name]

        def note(layer: nn.Module, args: tuple[Tensor, ...], by_name: dict[str, Tensor], outputs: Tensor) -> Tensor:
            inputs, num_scalars = args[0] if args else by_name["input"], layer.get_parameter("weight").numel()
            if (more := change.outputs(inputs)) is not None:
                outputs = outputs + more
            if outputs.requires_grad:
                is_thin = also_thick or inputs.numel() + outputs.numel() <= num_scalars
                # Under autocast a layer computes in another precision than its weight has.
                has_precision = inputs.dtype == outputs.dtype == change.dtype
                is_product = is_thin and name not in self._uses and has_precision
                self._uses[name] = _use(inputs, outputs) if is_product else None
            return outputs

        return note


def _use(inputs: Tensor, outputs: Tensor) -> Use:
    return Use(inputs, inputs._version, get_gradient_edge(outputs), outputs.shape[-1])


def _is_wide(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.weight.numel() >= _FEWEST_SCALARS
