"""A work as every side but fedelta's has it: plain modules of transformers and PEFT, and tensors that lie in memory.

What fedelta draws from its seed (weights, images, the order of batches) was written by prepare.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.peers.works import LORA_ALPHA, NUM_CLASSES, RANK, Work
from safetensors.torch import load_file
from torch import Tensor, nn

IGNORED = -100  # as in transformers


@dataclass(frozen=True)
class Loaded:
    """One work.

    Args:
        work: what is done.
        model: pixels to logits, or tokens and labels to losses; its tuned parameters have the values before round 1.
        tuned: those parameters, by fedelta's names.
        pixels: float32 of shape [N, channels, side, side]; of a language model its tokens, int64 of shape [N, T], with
            -1 as padding.
        labels: int64 of shape [N]; of a language model [N, T], -100 where nothing is trained on.
        orders: rows of each step, int64 of shape [rounds, clients, steps, batch].
    """

    work: Work
    model: nn.Module
    tuned: Mapping[str, nn.Parameter]
    pixels: Tensor
    labels: Tensor
    orders: Tensor

    def steps(self, number: int, client: int) -> Tensor:
        """Rows of a client's steps in round `number` (from 1), [steps, batch]; rounds that were not drawn repeat."""
        return self.orders[(number - 1) % len(self.orders), client]

    def train(self, rows: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Takes a client's steps."""
        for batch in rows:
            loss = self._loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def put(self, params: Mapping[str, Tensor]) -> None:
        """Copies these values into the model."""
        for name, parameter in self.tuned.items():
            parameter.copy_(params[name])

    @torch.no_grad()
    def loss(self, params: Mapping[str, Tensor]) -> float:
        """The mean over all rows, in nats, of the model with these params."""
        self.put(params)
        parts = torch.arange(len(self.labels)).split(16 if self.work.is_language else 256)
        sizes = [int((self.labels[part] != IGNORED).sum()) for part in parts]
        return sum(float(self._loss(part)) * size for part, size in zip(parts, sizes, strict=True)) / sum(sizes)

    def _loss(self, rows: Tensor) -> Tensor:
        """The mean loss of a batch."""
        if not self.work.is_language:
            return nn.functional.cross_entropy(self.model(self.pixels[rows]), self.labels[rows])
        # As a collator does: padded to the longest row of the batch.
        is_token = self.pixels[rows] >= 0
        length = int(is_token.sum(1).max())
        ids, is_token, labels = (tensor[:, :length] for tensor in (self.pixels[rows], is_token, self.labels[rows]))
        return self.model(
            input_ids=ids.clamp_min(0), attention_mask=is_token.long(), labels=labels, use_cache=False
        ).loss

    def optimizer(self) -> torch.optim.Optimizer:
        """A new one for a client. Fused is the fastest of PyTorch's variants on a CPU."""
        return torch.optim.SGD(self.tuned.values(), lr=self.work.lr, fused=True)


def load(folder: Path) -> Loaded:
    """The work in `folder`."""
    work = Work(**json.loads((folder / "work.json").read_text()))
    data = load_file(folder / "data.safetensors")
    base, start = load_file(folder / "base.safetensors"), load_file(folder / "start.safetensors")
    model = _network(work, base)
    tuned = _tuned(model)
    assert {name: tensor.shape for name, tensor in start.items()} == {name: p.shape for name, p in tuned.items()}
    loaded = Loaded(work, model, tuned, data["pixels"], data["labels"], data["orders"])
    loaded.put(start)
    return loaded


class LeafCnn(nn.Module):
    """LEAF's network (Caldas et al. 2018): two convolutions and two linear layers.

    In the form that fedelta has it: channels of a pixel side by side, and ReLU after the pool. That is the network's
    speed and no framework's, so every side gets it.
    """

    def __init__(self, side: int, channels: tuple[int, int], hidden: int) -> None:
        super().__init__()
        first, second = channels
        self.conv1 = nn.Conv2d(1, first, 5, padding="same")
        self.conv2 = nn.Conv2d(first, second, 5, padding="same")
        self.hidden = nn.Linear(second * (side // 4) ** 2, hidden)
        self.classifier = nn.Linear(hidden, NUM_CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.clone(memory_format=torch.channels_last)
        x = nn.functional.max_pool2d(self.conv1(x), 2).relu()
        x = nn.functional.max_pool2d(self.conv2(x), 2).relu()
        return self.classifier(self.hidden(x.flatten(1)).relu())


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, side: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(side**2, hidden)
        self.classifier = nn.Linear(hidden, NUM_CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.classifier(self.hidden(pixel_values.flatten(1)).relu())


class Logits(nn.Module):
    """A model of transformers that returns logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).logits


def _network(work: Work, base: Mapping[str, Tensor]) -> nn.Module:
    sizes = dict(work.architecture)
    kind = sizes.pop("model_type")
    if kind in {"femnist-cnn", "mlp"}:
        side, hidden = sizes["image_size"], sizes["hidden"]
        network: nn.Module = Mlp(side, hidden) if kind == "mlp" else LeafCnn(side, tuple(sizes["channels"]), hidden)
        network.load_state_dict(base)
        return network.eval()
    if kind == "llama":
        from transformers import LlamaConfig, LlamaForCausalLM

        network = LlamaForCausalLM(LlamaConfig(**sizes))
        network.load_state_dict(base, strict=False)
        network.tie_weights()
        return _tuning(work, network).eval()
    from transformers import ViTConfig, ViTForImageClassification

    network = ViTForImageClassification(ViTConfig(**sizes, num_labels=NUM_CLASSES))
    network.load_state_dict(base)
    return Logits(_tuning(work, network).eval())


def _tuning(work: Work, network: nn.Module) -> nn.Module:
    if work.tuning == "head":
        network.requires_grad_(False)
        network.classifier.requires_grad_(True)
        return network
    from peft import LoraConfig, get_peft_model

    head = None if work.is_language else ["classifier"]
    config = LoraConfig(r=RANK, lora_alpha=LORA_ALPHA, target_modules=["q_proj", "v_proj"], modules_to_save=head)
    return get_peft_model(network, config)


def _tuned(model: nn.Module) -> dict[str, nn.Parameter]:
    """PEFT's `base_model.model.vit.….lora_A.default.weight` is `vit.….lora_A` in fedelta."""
    tuned = {}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = path.removeprefix("model.").removeprefix("base_model.model.")
            name = name.replace(".modules_to_save.default", "").replace(".default.weight", "")
            tuned[name] = parameter
    return tuned
