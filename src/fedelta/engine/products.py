"""Gradients of wide dense layers as products of two thin matrices.

The gradient of a dense layer's weight is a product: of the gradient of its outputs, transposed, and its inputs. Where a
batch has few rows, both are much smaller than the weight. An optimizer that adds the product right to the weight passes
over it once; a gradient as large as the weight would be written, read, and added.

The model runs as it is. A hook notes the inputs of a layer, and where its outputs are in autograd's graph, which then
gives their gradient in place of the weight's. That these come to the same, because the model uses the weight nowhere
else, is tried on a few rows before training.

Shapes: R rows of a layer's inputs, I features in, O features out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

# Of a weight: a smaller one, and its gradient, stay in a core's own cache.
_FEWEST_SCALARS = 2**17


@dataclass(frozen=True)
class Product:
    """The gradient of a weight: the product of `left_OR` [O, R] and `right_RI` [R, I]."""

    left_OR: Tensor  # noqa: N815  the gradient of the outputs, transposed
    right_RI: Tensor  # noqa: N815  the inputs

    def dense(self) -> Tensor:
        """The gradient as one row [1, O I], in new memory."""
        return (self.left_OR @ self.right_RI).view(1, -1)


Gradient = Tensor | Product


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

    def product(self, grad: Tensor | None) -> Product:
        """The gradient of the weight for that of the outputs [..., O]; None: the loss does not depend on them."""
        right_RI = self.inputs.detach().reshape(-1, self.inputs.shape[-1])
        left_RO = right_RI.new_zeros(len(right_RI), self.num_outputs) if grad is None else grad
        return Product(left_RO.reshape(-1, self.num_outputs).T, right_RI)


class DenseLayers:
    """The wide dense layers of a model, and how each was used last.

    Args:
        module: the model.
        names: of the weights that are trained.
    """

    def __init__(self, module: nn.Module, names: Collection[str]) -> None:
        num_places = Counter(id(weight) for _, weight in module.named_parameters(remove_duplicate=False))
        self._layers = {
            name: layer
            for path, layer in module.named_modules()
            if (name := f"{path}.weight".lstrip(".")) in names and _is_wide(layer) and num_places[id(layer.weight)] == 1
        }
        self._uses: dict[str, Use | None] = {}  # None: of one use the gradient is no product

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def in_use(self) -> set[str]:
        """The weights of the layers of which a use has been noted."""
        return {name for name, use in self._uses.items() if use is not None}

    def limit(self, names: Collection[str]) -> None:
        """From now on notes the layers of these weights only."""
        self._layers = {name: layer for name, layer in self._layers.items() if name in names}

    @contextmanager
    def noted(self, *, also_thick: bool = False) -> Iterator[None]:
        """A context in which it is noted how layers are used.

        Args:
            also_thick: also with so many rows that the matrices of the product are larger than the weight.
        """
        with ExitStack() as hooks:
            for name, layer in self._layers.items():
                hooks.callback(layer.register_forward_hook(self._note(name, also_thick=also_thick)).remove)
            yield

    def take(self) -> dict[str, Use]:
        """The name of each weight whose gradient is one product, and how its layer was used; forgets them."""
        uses, self._uses = self._uses, {}
        # Autograd refuses to go on with inputs that were written to since, and shall say so itself.
        return {name: use for name, use in uses.items() if use is not None and use.inputs._version == use.version}

    def _note(self, name: str, *, also_thick: bool) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
            if outputs.requires_grad:
                use = None if name in self._uses else _use(inputs, outputs)
                is_thin = (
                    use is not None and use.inputs.numel() + outputs.numel() <= layer.get_parameter("weight").numel()
                )
                self._uses[name] = use if is_thin or also_thick else None

        return note


def _use(inputs: tuple[Tensor, ...], outputs: Tensor) -> Use | None:
    """A use, unless the inputs were passed by name, or the layer computed in another precision."""
    if not inputs or inputs[0].dtype != outputs.dtype:
        return None
    return Use(inputs[0], inputs[0]._version, get_gradient_edge(outputs), outputs.shape[-1])


def _is_wide(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.weight.numel() >= _FEWEST_SCALARS
