"""`fedelta.federate`: a run of a model and data that are given as objects, in one call.

>>> import tempfile, torch, fedelta
>>> def made(seed):
...     return torch.randn(20, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(20) % 2
>>> model, clients = torch.nn.Linear(4, 2), {"ann": made(0), "george": made(1)}
>>> with tempfile.TemporaryDirectory() as folder:
...     strategy = fedelta.FedAvg(num_rounds=2)
...     result = fedelta.federate(model, clients, made(2), tuning="full", strategy=strategy, out=f"{folder}/run")
>>> len(result.ledger.rounds), {name: tuple(tensor.shape) for name, tensor in result.params.items()}
(2, {'weight': (2, 4), 'bias': (2,)})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from torch import nn

from fedelta.assembly.metrics import Metrics
from fedelta.assembly.objects import Objects
from fedelta.codecs.base import Codec
from fedelta.codecs.channel import Channel
from fedelta.config import Config, checked_section, section_called
from fedelta.data.division import Partitioner
from fedelta.data.given import Collate
from fedelta.data.objects import by_client
from fedelta.engine.work import ClientSettings
from fedelta.errors import InputError, kind_of
from fedelta.experiment import Experiment, Result
from fedelta.models.hub import Backbone
from fedelta.models.objects import Loss, Processor
from fedelta.models.source import ModelSource
from fedelta.record.rundir import CONFIG
from fedelta.running import OnRound
from fedelta.settings.base import as_settings, changed
from fedelta.strategies.base import Strategy
from fedelta.tasks.base import Task
from fedelta.tuning.base import TuningMethod


def federate(
    model: nn.Module | Backbone | ModelSource | str, clients: object, test: object, *,
    tuning: TuningMethod | str | None = None, strategy: Strategy | str | None = None,
    client: ClientSettings | None = None, codec: Channel | Codec | str | None = None,
    task: Task | str | None = None, partition: Partitioner | None = None, seed: int | None = None,
    config: Config = Config(),  # noqa: B008 a frozen value
    loss: Loss | None = None, processor: Processor | None = None, class_names: Sequence[str] = (),
    head: Sequence[str] | None = None, collate: Collate | None = None, metrics: Metrics | None = None,
    out: str | Path | None = None, resume: bool = False, on_round: OnRound | None = None,
) -> Result:  # fmt: skip
    """Tunes `model` on the data of `clients`, and measures it on `test` after every round; returns the finished run.

    Args:
        model: an `nn.Module`, which is copied: `forward` takes one tensor [B, ...], several, or those of a dictionary,
            and gives logits [B, C], or `loss` calls it; a model of transformers; or a name as in `model.source`.
        clients: client name to data, or one data set that `partition` divides. Data are tensors (inputs [N, ...],
            labels [N]), a dictionary of tensors [N, ...], a `torch.utils.data.Dataset` or a `datasets.Dataset`.
        test: data in the same form, of all clients or by client name.
        tuning: section or name of the method; this and the next six are by default those of `config`.
        strategy: likewise; if `clients_per_round` is not set, all clients take part where there are fewer.
        client: local training.
        codec: of both directions, or a `Channel`.
        task: what is predicted.
        partition: of one data set.
        seed: of every random stream.
        config: all other sections.
        loss: `loss(model, batch)` gives the loss of each row [B] of a batch in the form of the data, or their mean [];
            clients train side by side only if there is a number for each row.
        processor: see `Objects`, as for the next four.
        class_names: in label order.
        head: paths of what is newly trained.
        collate: makes a batch of rows.
        metrics: further numbers.
        out: a new run directory; by default `runs/federate`, with a number if that exists.
        resume: go on with the run in `out`, if it has begun.
        on_round: called after each round with its outcome and the ledger.

    Raises:
        InputError: something given cannot be used; no run directory is left behind.
        RoundError: training failed; earlier rounds are kept.
    """
    _refuse_forms(config, loss, {"class_names": class_names, "head": head}, {"metrics": metrics, "on_round": on_round})
    given: dict[str, object] = {"tuning": tuning, "strategy": strategy, "client": client, "codec": _channel(codec)}
    given |= {"task": task, "partition": partition, "seed": seed}
    sections = {key: _section(key, value) for key, value in given.items() if value is not None}
    objects = Objects(model, clients, test, loss, processor, class_names, head, collate, metrics)
    experiment = Experiment(_with_cohort(config.model_copy(update=sections), clients), objects, name="federate")
    if resume and _has_begun(out):
        return experiment.resume(out, on_round=on_round)
    return experiment.run(out, on_round=on_round)


def _has_begun(out: str | Path | None) -> TypeGuard[str | Path]:
    if out is None:
        raise InputError("`resume=True` needs the run to go on with.", hint="name it: `out=...`.")
    return (Path(out) / CONFIG).is_file()


def _section(key: str, value: object) -> object:
    """A section, which may be given by the name of its method.

    Raises:
        ConfigError: it is something else.
    """
    section = section_called(key, value) if isinstance(value, str) and key != "seed" else value
    checked_section(key, section)
    return section


def _refuse_forms(config: object, loss: object, lists: Mapping[str, object], functions: Mapping[str, object]) -> None:
    """Refuses arguments of another form than the one expected, which would fail late or do something else."""
    problem, hint = "", None
    if not isinstance(config, Config):
        problem, hint = f"`config` is {kind_of(config)}, expected a `fedelta.Config`.", "`fedelta.Config()` is one."
    for name, value in lists.items():
        if isinstance(value, str):
            problem, hint = f"`{name}` is the text {value!r}, expected a list of texts.", f"`{name}=[{value!r}]`."
    for name, value in functions.items():
        if value is not None and not callable(value):
            problem = f"`{name}` is {kind_of(value)}, expected a function."
    if isinstance(loss, type) or type(loss).__module__ == nn.CrossEntropyLoss.__module__:
        problem = f"`loss` is {kind_of(loss)}, expected a function of the model and a batch."
        hint = "the task has its loss already; of your own: `loss=lambda model, batch: ...`, a number for each row."
    if problem:
        raise InputError(problem, hint=hint)


def _channel(codec: Channel | Codec | str | None) -> object:
    """The codec of both directions as a section, or what is none as it is."""
    return codec if codec is None or isinstance(codec, str | Channel | type) else Channel(down=codec, up=codec)


def _with_cohort(config: Config, clients: object) -> Config:
    """The configuration with a cohort of all clients, where there are fewer than in the default one."""
    named, strategy = by_client(clients), as_settings(config.strategy)
    num = config.partition.num_clients if named is None else len(named)
    if not num or "clients_per_round" in strategy.model_fields_set or config.strategy.clients_per_round <= num:
        return config
    return config.model_copy(update={"strategy": changed(config.strategy, {"clients_per_round": num})})
