"""The training loop: made images, a cosine classifier over the source classes, and checkpoints."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from fedelta.models.resnet import SmallResNet
from pretraining.batches import ClassBank, draw_batch, make_bank
from pretraining.networks import CosineHead, build_backbone, image_features
from pretraining.recipe import Recipe, Training
from pretraining.storage import write_atomically
from pretraining.streams import stream

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trainer:
    """Everything that changes while training; all of it goes into a checkpoint."""

    backbone: PreTrainedModel
    head: CosineHead
    optimizers: tuple[torch.optim.Optimizer, ...]
    kernels: tuple[tuple[nn.Parameter, nn.Parameter], ...] = ()  # a convolution's, and the matrix on its memory


def pretrain(recipe: Recipe, checkpoint_path: Path) -> tuple[PreTrainedModel, CosineHead, ClassBank]:
    """Trains from the recipe, or on from the checkpoint if there is one; writes checkpoints as it goes."""
    torch.set_num_threads(recipe.training.threads)
    bank = make_bank(recipe.images, recipe.seed)
    trainer = start(recipe)
    first_step = _resume(trainer, recipe, checkpoint_path)
    for step, loss in train_steps(trainer, bank, recipe.training, first_step):
        if step % recipe.training.checkpoint_every == 0 or step == recipe.training.steps:
            _save(trainer, recipe, step, checkpoint_path)
            logger.info("step %d of %d, loss %.3f", step, recipe.training.steps, loss)
    return trainer.backbone, trainer.head, bank


def start(recipe: Recipe) -> Trainer:
    """The untrained network, head and optimizers of a recipe."""
    backbone = build_backbone(recipe.network, recipe.seed)
    width = image_features(backbone.eval(), torch.zeros(1, 3, recipe.images.side, recipe.images.side)).shape[1]
    head = CosineHead(width, recipe.images.num_classes, recipe.training.cosine_scale, stream(recipe.seed, "head"))
    kernels = _kernels(backbone) if recipe.training.muon_lr else ()
    return Trainer(backbone.train(), head, _optimizers(backbone, head, recipe.training, kernels), kernels)


def train_steps(
    trainer: Trainer, bank: ClassBank, training: Training, first_step: int = 0
) -> Iterator[tuple[int, float]]:
    """Takes the remaining steps one by one; yields the number of steps done and the loss."""
    parameters = [*trainer.backbone.parameters(), *trainer.head.parameters()]
    for step in range(first_step, training.steps):
        factor = lr_factor(step, training)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        images, labels = draw_batch(bank, training.batch_size, "training", step)
        with torch.autocast("cpu", torch.bfloat16):
            features = image_features(trainer.backbone, images)
        loss = functional.cross_entropy(trainer.head(features.float()), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, training.max_gradient_norm)
        for kernel, matrix in trainer.kernels:
            matrix.grad, kernel.grad = kernel.grad.flatten(1), None
        for optimizer in trainer.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        yield step + 1, loss.item()


def lr_factor(step: int, training: Training) -> float:
    """Linear warm-up to 1, then half a cosine to 0 at the last step."""
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    done = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def source_accuracy(backbone: PreTrainedModel, head: CosineHead, bank: ClassBank, recipe: Recipe) -> float:
    """Share of held-out instances of the source classes that get their own class, 0 to 1."""
    backbone.eval()
    hits, seen = 0, 0
    with torch.inference_mode():
        for number in range(recipe.training.held_out_batches):
            images, labels = draw_batch(bank, recipe.training.batch_size, "held-out", number)
            hits += int((head(image_features(backbone, images)).argmax(1) == labels).sum())
            seen += len(labels)
    return hits / seen


def _kernels(backbone: nn.Module) -> tuple[tuple[nn.Parameter, nn.Parameter], ...]:
    """The kernels inside a convolutional network, each with a matrix [O, I * 9] on its memory: Muon wants two axes."""
    if not isinstance(backbone, SmallResNet):
        return ()
    results = [p for name, p in backbone.named_parameters() if p.ndim == 4 and name != "conv1.weight"]
    return tuple((kernel, nn.Parameter(kernel.detach().flatten(1))) for kernel in results)


def _optimizers(
    backbone: nn.Module,
    head: nn.Module,
    training: Training,
    kernels: tuple[tuple[nn.Parameter, nn.Parameter], ...],
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside the network, AdamW for all else; weight decay on matrices only."""
    named = list(backbone.named_parameters())
    inner = [p for name, p in named if p.ndim == 2] if training.muon_lr else []
    inner_ids = {id(p) for p in (*inner, *(kernel for kernel, _ in kernels))}
    inner += [matrix for _, matrix in kernels]
    outer = [p for _, p in named if id(p) not in inner_ids] + list(head.parameters())
    matrices, vectors = [p for p in outer if p.ndim in (2, 4)], [p for p in outer if p.ndim not in (2, 4)]
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=training.lr, betas=(0.9, 0.98))]
    if inner:
        optimizers.append(
            torch.optim.Muon(inner, lr=training.muon_lr, weight_decay=training.weight_decay, momentum=0.95)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return tuple(optimizers)


def _save(trainer: Trainer, recipe: Recipe, step: int, path: Path) -> None:
    state = {
        "recipe": recipe.model_dump_json(),
        "step": step,
        "backbone": trainer.backbone.state_dict(),
        "head": trainer.head.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
    }
    write_atomically(path, lambda file: torch.save(state, file))


def _resume(trainer: Trainer, recipe: Recipe, path: Path) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["recipe"] != recipe.model_dump_json():
        raise ValueError(f"{str(path)!r} belongs to another recipe; remove it or choose another `--out`.")
    trainer.backbone.load_state_dict(state["backbone"])
    trainer.head.load_state_dict(state["head"])
    for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    logger.info("resumed at step %d", state["step"])
    return int(state["step"])
