"""For users of `transformers.Trainer`: the same model, data sets, collator and metrics, federated.

    from fedelta.hf import federate_trainer

    result = federate_trainer(
        model, {"ann": ..., "george": ...}, eval_dataset, args=TrainingArguments(...), num_rounds=10,
        processing_class=tokenizer, compute_metrics=compute_metrics,
    )
    model = result.module()

Of `TrainingArguments` the numbers are read that mean the same for a client: learning rate, batch size, epochs or steps
of a round, the optimizer, the seed and the output directory. Others differ from a Trainer: the learning rate does not
decay within a round, gradients are not clipped, and dropout is off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fedelta.assembly.metrics import Metrics
from fedelta.codecs.base import Codec
from fedelta.codecs.channel import Channel
from fedelta.config import Config
from fedelta.data.forms import is_hugging_face
from fedelta.data.given import Collate
from fedelta.engine.optimizers import AdamW, Optimizer, Sgd
from fedelta.engine.work import ClientSettings
from fedelta.errors import InputError
from fedelta.experiment import Result
from fedelta.federating import federate
from fedelta.models.objects import Processor, parameters_of
from fedelta.running import OnRound
from fedelta.settings.base import changed
from fedelta.strategies.base import Strategy
from fedelta.strategies.fedavg import FedAvg
from fedelta.tasks.base import Task
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.lora import Lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

ComputeMetrics = Callable[[Any], Mapping[str, float]]
"""Gives numbers by name of a `transformers.EvalPrediction` (Any)."""

_LABELS = ("label", "labels", "label_ids")  # those of a Trainer
# Arguments of a Trainer that would change the training, and their values that change nothing.
_WITHOUT_EFFECT = {
    "gradient_accumulation_steps": 1, "warmup_steps": 0, "label_smoothing_factor": 0.0, "group_by_length": False,
}  # fmt: skip


def federate_trainer(
    model: PreTrainedModel,
    train_datasets: Mapping[str | int, object],
    eval_dataset: object,
    *,
    args: TrainingArguments | None = None,
    processing_class: Processor | None = None,
    data_collator: Collate | None = None,
    compute_metrics: ComputeMetrics | None = None,
    num_rounds: int | None = None,
    tuning: TuningMethod | str = Lora(),  # noqa: B008 a frozen value
    strategy: Strategy = FedAvg(),  # noqa: B008 a frozen value
    codec: Channel | Codec | str | None = None,
    task: Task | str | None = None,
    config: Config = Config(),  # noqa: B008 a frozen value
    resume: bool = False,
    on_round: OnRound | None = None,
) -> Result:
    """Tunes `model` on the data sets of clients; returns the finished run, of which `module()` is the tuned model.

    Args:
        model: of transformers; copied.
        train_datasets: client name to its data set, raw (texts, images) or ready for the model, as for a Trainer.
        eval_dataset: measured after every round.
        args: numbers of local training; by default those of `config.client`.
        processing_class: tokenizer or image processor, for raw data.
        data_collator: makes a batch of rows, for ready data of different lengths; of tokenised texts by default
            `transformers.DataCollatorWithPadding(processing_class)`.
        compute_metrics: gives further numbers about the finished model, in `summary["metrics"]`.
        num_rounds: by default those of the strategy; each has the epochs or steps of `args`.
        tuning: section or name of the method.
        strategy: how the server proceeds.
        codec: as for `fedelta.federate`.
        task: classes by default; "language" for a causal language model.
        config: all other sections.
        resume: go on with the run in `args.output_dir`, if it has begun.
        on_round: called after each round with its outcome and the ledger.

    Raises:
        InputError: something given cannot be used; see `fedelta.federate`.
    """
    collate = data_collator or (_padding(processing_class) if _are_tokens(train_datasets) else None)
    clients, test = (_columns_of(model, sets, collate) for sets in (train_datasets, eval_dataset))
    return federate(
        model, clients, test, tuning=tuning, codec=codec, task=task, config=config, processor=processing_class,
        strategy=strategy if num_rounds is None else changed(strategy, {"num_rounds": num_rounds}), collate=collate,
        client=config.client if args is None else client_of(args), seed=None if args is None else args.seed,
        metrics=None if compute_metrics is None else _metrics(compute_metrics),
        out=None if args is None or not args.output_dir else Path(args.output_dir), resume=resume, on_round=on_round,
    )  # fmt: skip


def _are_tokens(clients: Mapping[str | int, object]) -> bool:
    """Whether the data sets hold tokens, of which rows differ in number."""
    return all(is_hugging_face(rows) and "input_ids" in rows.column_names for rows in clients.values())


def _padding(tokenizer: Any) -> Collate:
    """Any: a tokenizer of transformers.

    Raises:
        InputError: there is none.
    """
    from transformers import DataCollatorWithPadding

    if tokenizer is None:
        raise InputError("tokenised texts need padding.", hint="give `processing_class=tokenizer` or `data_collator=`.")
    return DataCollatorWithPadding(tokenizer)


def _columns_of(model: nn.Module, sets: object, collate: Collate | None) -> object:
    """Data sets, alone or by client, without the columns that the model does not take, as a Trainer removes them."""
    if isinstance(sets, Mapping):
        return {name: _columns_of(model, rows, collate) for name, rows in sets.items()}
    if collate is None or not is_hugging_face(sets):
        return sets
    parameters, _, _ = parameters_of(model)
    return sets.select_columns([name for name in sets.column_names if name in (*parameters, *_LABELS)])


def client_of(args: TrainingArguments) -> ClientSettings:
    """Section `[client]` with the numbers of a Trainer.

    Raises:
        InputError: an argument would change the training, but has no counterpart.
    """
    foreign = {
        name: value
        for name, usual in _WITHOUT_EFFECT.items()
        if (value := getattr(args, name, usual)) not in (usual, None)
    }
    if foreign:
        raise InputError(
            f"`args` has {foreign}, which a federated client does not follow.",
            hint="leave it out, or set what corresponds to it: `config=fedelta.Config(client=...)`.",
        )
    steps = args.max_steps if args.max_steps > 0 else None
    if steps is None and args.num_train_epochs != int(args.num_train_epochs):
        raise InputError(f"`args.num_train_epochs` is {args.num_train_epochs}, expected a whole number for each round.")
    return ClientSettings(
        local_epochs=int(args.num_train_epochs) if steps is None else None,
        local_steps=steps,
        batch_size=args.per_device_train_batch_size,
        lr=args.learning_rate,
        optimizer=_optimizer_of(args),
    )


def _optimizer_of(args: TrainingArguments) -> Optimizer:
    name = str(getattr(args.optim, "value", args.optim))
    if name == "sgd":
        return Sgd(momentum=0.0, weight_decay=args.weight_decay)
    if name.startswith("adamw_torch"):
        beta1, beta2 = args.adam_beta1, args.adam_beta2
        return AdamW(weight_decay=args.weight_decay, eps=args.adam_epsilon, beta1=beta1, beta2=beta2)
    raise InputError(f"`args.optim` is {name!r}, expected 'sgd' or 'adamw_torch'.")


def _metrics(compute_metrics: ComputeMetrics) -> Metrics:
    """The function of a Trainer as one of outputs and labels."""

    def metrics(outputs: Tensor, labels: Tensor) -> Mapping[str, float]:
        from transformers import EvalPrediction

        return compute_metrics(EvalPrediction(outputs.float().numpy(), labels.numpy()))

    return metrics
