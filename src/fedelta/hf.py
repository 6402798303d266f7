"""For users of `transformers.Trainer`: the same model, data sets, collator and metrics, federated.

    from fedelta.hf import federate_trainer

    result = federate_trainer(
        model, {"ann": ..., "george": ...}, eval_dataset, args=TrainingArguments(...), num_rounds=10,
        processing_class=tokenizer, compute_metrics=compute_metrics,
    )
    model = result.module()

`hf_arguments.py` says what each of `TrainingArguments` becomes. Dropout is off, and gradients are not clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fedelta.assembly.metrics import Metrics
from fedelta.codecs.base import Codec
from fedelta.codecs.channel import Channel
from fedelta.config import Config
from fedelta.data.forms import is_hugging_face
from fedelta.data.given import Collate
from fedelta.errors import InputError, listed
from fedelta.experiment import Result
from fedelta.federating import federate
from fedelta.hf_arguments import read_arguments
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


def federate_trainer(
    model: PreTrainedModel, train_datasets: Mapping[str | int, object], eval_dataset: object, *,
    args: TrainingArguments | None = None, processing_class: Processor | None = None,
    data_collator: Collate | None = None, compute_metrics: ComputeMetrics | None = None,
    callbacks: Sequence[object] = (), num_rounds: int | None = None,
    tuning: TuningMethod | str = Lora(),  # noqa: B008 a frozen value
    strategy: Strategy = FedAvg(),  # noqa: B008 a frozen value
    codec: Channel | Codec | str | None = None, task: Task | str | None = None,
    config: Config = Config(),  # noqa: B008 a frozen value
    resume: bool = False, on_round: OnRound | None = None,
) -> Result:  # fmt: skip
    """Tunes `model` on the data sets of clients; returns the finished run, of which `module()` is the tuned model.

    Args:
        model: of transformers; copied.
        train_datasets: client name to its data set, raw (texts, images) or ready for the model, as for a Trainer.
        eval_dataset: measured after every round.
        args: numbers of local training (`hf_arguments.py`); by default those of `config.client`.
        processing_class: tokenizer or image processor, for raw data.
        data_collator: makes a batch of rows, for ready data of different lengths; of tokenised texts by default
            one of transformers that pads them.
        compute_metrics: gives further numbers about the finished model, in `summary["metrics"]`.
        callbacks: none; see `on_round`.
        num_rounds: by default those of the strategy; each has the epochs or steps of `args`.
        tuning: section or name of the method.
        strategy: how the server proceeds.
        codec: as for `fedelta.federate`.
        task: by default that of the model: classes, or for a causal language model "language".
        config: all other sections.
        resume: go on with the run in `args.output_dir`, if it has begun.
        on_round: called after each round with its outcome and the ledger.

    Raises:
        InputError: something given cannot be used; see `fedelta.federate`.
    """
    _refuse_callbacks(callbacks)
    strategy = strategy if num_rounds is None else changed(strategy, {"num_rounds": num_rounds})
    given = None if args is None else read_arguments(args, strategy.num_rounds)
    if given is not None:
        config = config.model_copy(update={"runtime": config.runtime.model_copy(update=given.runtime)})
    task = _task_of(model) if task is None else task
    collate = data_collator or _padding(processing_class, train_datasets)
    removes = collate is not None and (given is None or given.removes_columns)
    clients, test = (_columns_of(model, sets) if removes else sets for sets in (train_datasets, eval_dataset))
    return federate(
        model, clients, test, tuning=tuning, codec=codec, task=task, config=config, processor=processing_class,
        strategy=strategy, collate=collate, client=config.client if given is None else given.client,
        seed=None if given is None else given.seed, metrics=compute_metrics and _metrics(compute_metrics, task),
        out=None if args is None or not args.output_dir else Path(args.output_dir), resume=resume, on_round=on_round,
    )  # fmt: skip


def _refuse_callbacks(callbacks: Sequence[object]) -> None:
    if callbacks:
        names = listed([type(callback).__name__ for callback in callbacks])
        raise InputError(
            f"`callbacks` has {names}, and callbacks of a Trainer are not called.",
            hint="use `on_round=`, which is called after each round with its outcome and the ledger.",
        )


def _task_of(model: PreTrainedModel) -> str | None:
    """What a model of transformers predicts, by its class and its configuration; None for classes."""
    name, problem = type(model).__name__, getattr(model.config, "problem_type", None)
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "language"
    if name.endswith("ForTokenClassification"):
        return "tokens"
    return {"regression": "regression", "multi_label_classification": "multi-label"}.get(str(problem))


def _padding(tokenizer: Any, clients: Mapping[str | int, object]) -> Collate | None:
    """A collator of transformers for data sets of tokens, of which rows differ in number; None for others.

    Any: a tokenizer of transformers.

    Raises:
        InputError: there is no tokenizer.
    """
    first = next(iter(clients.values()), None)
    if not is_hugging_face(first) or "input_ids" not in first.column_names or first.format["type"] == "custom":
        return None
    from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding

    if tokenizer is None:
        raise InputError("tokenised texts need padding.", hint="give `processing_class=tokenizer` or `data_collator=`.")
    has_tags = "labels" in first.column_names and len(first) and isinstance(first[0]["labels"], list)
    return DataCollatorForTokenClassification(tokenizer) if has_tags else DataCollatorWithPadding(tokenizer)


def _columns_of(model: nn.Module, sets: object) -> object:
    """Data sets, alone or by client, without the columns that the model does not take, as a Trainer removes them."""
    if isinstance(sets, Mapping):
        return {name: _columns_of(model, rows) for name, rows in sets.items()}
    if not is_hugging_face(sets) or sets.format["type"] == "custom":  # a transform may read any column
        return sets
    parameters, _, _ = parameters_of(model)
    return sets.select_columns([name for name in sets.column_names if name in (*parameters, *_LABELS)])


def _metrics(compute_metrics: ComputeMetrics, task: Task | str | None) -> Metrics:
    """The function of a Trainer as one of outputs and labels.

    Raises:
        InputError: the model is a language model.
    """
    name = task if task is None or isinstance(task, str) else task.name
    if name == "language":
        raise InputError(
            "`compute_metrics` needs logits, and those of a language model are not kept.",
            hint="leave it out: loss and perplexity are measured, and answers by `task=fedelta.Language(...)`.",
        )

    def metrics(outputs: Tensor, labels: Tensor) -> Mapping[str, float]:
        from transformers import EvalPrediction

        return compute_metrics(EvalPrediction(outputs.float().numpy(), labels.numpy()))

    return metrics
