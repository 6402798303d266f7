"""What `transformers.TrainingArguments` mean for a federated run: mapped, noted as without effect, or refused by name.

A round is a short training of each client, so what a Trainer spreads over its whole training is spread over the rounds:
the learning rate falls from round to round, and a warm-up is a share of the rounds. Steps and epochs are those of one
round.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fedelta.engine.optimizers import AdamW, Constant, Cosine, Linear, Optimizer, Schedule, Sgd
from fedelta.engine.work import ClientSettings
from fedelta.errors import InputError, listed

logger = logging.getLogger("fedelta")

_MAPPED = frozenset({
    "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type",
    "warmup_steps", "optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "gradient_accumulation_steps",
    "bf16", "gradient_checkpointing", "activation_checkpointing", "seed", "use_cpu", "remove_unused_columns",
})  # fmt: skip
# Beginnings of arguments that say where, how often or how fast something is done, and not what is computed.
_WITHOUT_EFFECT = (
    "logging_", "log_", "eval_", "per_device_eval_batch_size", "save_", "report_to", "run_name", "project", "trackio_",
    "disable_tqdm", "do_", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "skip_memory_metrics", "ddp_", "local_rank", "hub_", "torch_empty_cache_steps",
    "full_determinism",
)  # fmt: skip
_SCHEDULES: Mapping[str, type[Linear | Cosine | Constant]] = {
    "linear": Linear, "cosine": Cosine, "constant": Constant, "constant_with_warmup": Constant,
}  # fmt: skip
_HINTS = {
    "label_smoothing_factor": "use a loss function of your own: `fedelta.federate(..., loss=...)`",
    "fp16": "use `bf16=True`",
    "resume_from_checkpoint": "use `federate_trainer(..., resume=True)`",
    "load_best_model_at_end": "the summary names the best round; the model is that of the last one",
    "push_to_hub": "upload the directory `adapter/` of the run",
    "max_grad_norm": "set it to 0: gradients are not clipped",
}


@dataclass(frozen=True)
class Arguments:
    """What the arguments of a Trainer become.

    Args:
        client: section `[client]`.
        runtime: fields of section `[runtime]`.
        seed: of the run.
        removes_columns: whether columns that the model does not take are left out.
    """

    client: ClientSettings
    runtime: Mapping[str, object]
    seed: int
    removes_columns: bool


def read_arguments(args: Any, num_rounds: int) -> Arguments:
    """What `args` mean for a run of `num_rounds`; logs what has no effect.

    Args:
        args: of a Trainer (Any: a class of transformers, or one derived from it).
        num_rounds: over which schedules run.

    Raises:
        InputError: an argument would change the training, but has no counterpart; names all of them.
    """
    others = _changed(args) - _MAPPED
    idle = sorted(name for name in others if name.startswith(_WITHOUT_EFFECT))
    refused = others - set(idle)
    if not args.max_grad_norm:
        refused -= {"max_grad_norm"}
    if refused:
        shown = {name: getattr(args, name) for name in sorted(refused)}
        hints = [f"{name}: {_HINTS[name]}" for name in sorted(refused & _HINTS.keys())]
        hint = "; ".join(hints) or "leave them out, or set what corresponds to them in `config=fedelta.Config(...)`"
        raise InputError(f"`args` has {shown}, which a federated client does not follow.", hint=f"{hint}.")
    if idle:
        logger.warning("`args`: %s have no effect on a federated run.", listed(idle, 20))
    if args.max_grad_norm:
        logger.info("gradients are not clipped: `args.max_grad_norm` = %g is not followed.", args.max_grad_norm)
    chosen: list[tuple[bool, str, object]] = [
        (args.bf16, "compute_dtype", "bfloat16"),
        (args.use_cpu, "device", "cpu"),
        (args.gradient_checkpointing or args.activation_checkpointing, "gradient_checkpointing", True),
    ]
    runtime = {name: value for is_set, name, value in chosen if is_set}
    return Arguments(_client(args, num_rounds), runtime, args.seed, bool(args.remove_unused_columns))


def _changed(args: Any) -> set[str]:
    """The arguments that do not have their default."""
    plain = type(args)(output_dir=args.output_dir, use_cpu=args.use_cpu)
    return {field.name for field in fields(args) if getattr(args, field.name) != getattr(plain, field.name)}


def _client(args: Any, num_rounds: int) -> ClientSettings:
    steps = args.max_steps if args.max_steps > 0 else None
    if steps is None and args.num_train_epochs != int(args.num_train_epochs):
        raise InputError(f"`args.num_train_epochs` is {args.num_train_epochs}, expected a whole number for each round.")
    return ClientSettings(
        local_epochs=int(args.num_train_epochs) if steps is None else None,
        local_steps=steps,
        # One step on the mean of all rows is what a Trainer accumulates over several passes.
        batch_size=args.per_device_train_batch_size * args.gradient_accumulation_steps,
        lr=args.learning_rate,
        optimizer=_optimizer(args),
        schedule=_schedule(args, num_rounds),
    )


def _schedule(args: Any, num_rounds: int) -> Schedule:
    name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if name not in _SCHEDULES:
        raise InputError(f"`args.lr_scheduler_type` is {name!r}, expected {listed(tuple(_SCHEDULES))}.")
    if args.warmup_steps >= 1:
        raise InputError(
            f"`args.warmup_steps` is {args.warmup_steps}, expected a share of the rounds, below 1.",
            hint="such as 0.1 for a tenth of them.",
        )
    is_warming = name != "constant" and args.warmup_steps > 0
    return _SCHEDULES[name](warmup_rounds=max(1, round(args.warmup_steps * num_rounds)) if is_warming else 0)


def _optimizer(args: Any) -> Optimizer:
    name = str(getattr(args.optim, "value", args.optim))
    if name == "sgd":
        return Sgd(momentum=0.0, weight_decay=args.weight_decay)
    if name.startswith("adamw_torch"):
        beta1, beta2 = args.adam_beta1, args.adam_beta2
        return AdamW(weight_decay=args.weight_decay, eps=args.adam_epsilon, beta1=beta1, beta2=beta2)
    raise InputError(f"`args.optim` is {name!r}, expected 'sgd' or 'adamw_torch'.")
