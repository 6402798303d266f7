"""The loop that fedelta is measured against: plain PyTorch, one client after the other, nothing needless.

One model instance for all clients; frozen tensors ask for no gradient, so autograd stops below the first tuned
one; PyTorch's fused SGD; no payloads, no checks, no log. It does the same steps on the same batches as fedelta.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import repeat

import torch
from torch import Generator, Tensor, nn

from fedelta.data.batches import batches
from fedelta.seeds import stream


class LoraLinear(nn.Module):
    """A linear layer and a low-rank pair, in the usual form."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, generator: Generator) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        bound = 1 / math.sqrt(base.in_features)
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    @property
    def weight(self) -> Tensor:
        """transformers asks a layer for its dtype through it."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        low = nn.functional.linear(x, self.lora_A)
        return self.base(x) + self.scale * nn.functional.linear(low, self.lora_B)


def tune(model: nn.Module, tuning: str, *, rank: int, lora_alpha: float, generator: Generator) -> None:
    """Freezes `model` and puts in what is tuned; A is drawn in the order of the model, as fedelta does."""
    model.requires_grad_(tuning == "full")
    if tuning == "full":
        return
    if tuning == "lora":
        for path, layer in list(model.named_modules()):
            parent, _, name = path.rpartition(".")
            if name in {"q_proj", "v_proj"}:
                setattr(model.get_submodule(parent), name, LoraLinear(layer, rank, lora_alpha / rank, generator))
    model.classifier.requires_grad_(True)


class BareLoop:
    """FedAvg over clients that take turns on `model`."""

    def __init__(
        self,
        model: nn.Module,
        pixels: Tensor,
        labels: Tensor,
        partition: Mapping[int, Tensor],
        *,
        batch_size: int,
        local_epochs: int,
        lr: float,
        momentum: float,
        seed: int,
    ) -> None:
        self.model = model
        self.tuned = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        self.params = {name: tensor.detach().clone() for name, tensor in self.tuned.items()}
        self.pixels = pixels
        self.labels = labels
        self.partition = partition
        self.batch_size = batch_size
        self.local_epochs = local_epochs
        self.lr = lr
        self.momentum = momentum
        self.seed = seed
        self.rounds = 0

    def round(self) -> dict[str, Tensor]:
        """Trains every client once and returns the new server params."""
        self.rounds += 1
        num_examples = sum(len(rows) for rows in self.partition.values())
        mean = {name: torch.zeros_like(tensor) for name, tensor in self.params.items()}
        for client_id, rows in self.partition.items():
            self._train(rows, stream(self.seed, "batches", self.rounds, client_id))
            for name, tensor in self.tuned.items():
                mean[name].add_(tensor.detach(), alpha=len(rows) / num_examples)
        self.params = mean
        return mean

    def _train(self, rows: Tensor, generator: Generator) -> None:
        with torch.no_grad():
            for name, tensor in self.tuned.items():
                tensor.copy_(self.params[name])
        # Fused is the fastest of PyTorch's variants on a CPU.
        optimizer = torch.optim.SGD(self.tuned.values(), lr=self.lr, momentum=self.momentum, fused=True)
        num_steps = self.local_epochs * -(-len(rows) // self.batch_size)
        for batch in batches(rows, self.batch_size, num_steps, repeat(generator)):
            logits = logits_of(self.model(pixel_values=self.pixels[batch]))
            loss = nn.functional.cross_entropy(logits, self.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def logits_of(output: object) -> Tensor:
    """A plain module returns logits, transformers an object that holds them."""
    return output if isinstance(output, Tensor) else output.logits
