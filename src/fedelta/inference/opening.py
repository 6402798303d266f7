"""Puts an adapter into its base model: the model that a run has tuned, ready to predict."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from fedelta.catalog import LOW_RANK
from fedelta.data.clients import Name
from fedelta.errors import AdapterError, FormatError, RunError, listed
from fedelta.federation.memory import Memories
from fedelta.inference.adapter import SavedAdapter, read_adapter
from fedelta.inference.adapter_settings import read_settings, refuse_other_settings
from fedelta.inference.directory import SETTINGS
from fedelta.inference.folding import folded_pairs
from fedelta.inference.layout import is_pair
from fedelta.inference.objects import base_of
from fedelta.inference.translate import placed
from fedelta.models.heads import class_names_of
from fedelta.models.hub import Backbone, build
from fedelta.models.objects import Processor, unwrapped, with_classes
from fedelta.models.source import ModelSource, read_config
from fedelta.params import Params, ParamSpec
from fedelta.record import rundir
from fedelta.record.checkpoint import load
from fedelta.record.origin import changed_files, refuse, refuse_other_adapter
from fedelta.record.partition import read_clients
from fedelta.seeds import stream
from fedelta.settings.paths import is_in_python
from fedelta.tasks.base import Task
from fedelta.tasks.class_names import order_of
from fedelta.tasks.classification import Classification
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.identity import identity, unlike
from fedelta.tuning.lanes import Lanes

logger = logging.getLogger("fedelta")

Opened = tuple[Backbone, tuple[str, ...], Task, TuningMethod]
"""A tuned backbone, its class names in label order, its task and its tuning method."""


@dataclass(frozen=True)
class Opening:
    """How an adapter is put into its base model.

    Args:
        class_names: for the classes, in label order; by default those of the adapter, else of the base model.
        seed: of random base weights; by default that of the run.
        preparation: changes to how examples become inputs; None for no change.
        processor: of a model of transformers that is given as a module.
        reads_examples: whether that processor is needed.
    """

    class_names: Sequence[str] | None = None
    seed: int | None = None
    preparation: Mapping[str, object] = field(default_factory=dict)
    processor: Processor | None = None
    reads_examples: bool = True

    def of_adapter(self, directory: Path, model: ModelSource | nn.Module | str | None) -> Opened:
        """The base model with the adapter in `directory`; errors are those of `Predictor.from_adapter`."""
        adapter, is_given = read_adapter(directory), model is not None
        model = unwrapped(model)
        if isinstance(model, nn.Module):
            return self._of_module(directory, adapter, model)
        model = ModelSource(source=model) if isinstance(model, str) else model or _base_model(adapter)
        if model is None:
            raise AdapterError(
                f"adapter {str(directory)!r} does not name its base model"
                + (", which was given as an object in Python." if _was_given(adapter) else "."),
                hint="pass it, in Python: `Predictor.from_adapter(directory, model)`, or "
                "`Predictor.open(run, model=model)`, whose `module()` is the whole tuned model.",
            )
        task = adapter.task or Classification()
        new_names = tuple(self.class_names or ()) if task.has_classes else ()
        names = adapter.class_names or (new_names or _class_names(model) if task.has_classes else ())
        _check_names(new_names, names)
        has_head = any(not is_pair(name) for name in adapter.params)
        seed = adapter.seed if self.seed is None else self.seed
        backbone = build(model, names, seed=seed, task=task, logs_head=not has_head)
        backbone = self._prepared(backbone, adapter)
        spec = install(adapter, backbone)
        other = unlike(adapter.identity, identity(backbone, spec.names, model))
        _refuse_other_base(directory, model, other, is_given=is_given)
        names = names if not new_names or order_of(names, new_names) else new_names
        return backbone, names, task, adapter.tuning

    def _prepared(self, backbone: Backbone, adapter: SavedAdapter) -> Backbone:
        """The backbone with the preparation of the adapter, and the changes to it."""
        if backbone.modality is None:
            return backbone
        update = {key: value for key, value in self.preparation.items() if value is not None}
        return replace(backbone, modality=backbone.modality.prepared(adapter.preparation.model_copy(update=update)))

    def _of_module(self, directory: Path, adapter: SavedAdapter, module: nn.Module) -> Opened:
        """The adapter in a module of the caller's."""
        names = tuple(adapter.class_names or self.class_names or ())
        backbone = base_of(directory, adapter, module, self.processor, reads_examples=self.reads_examples)
        backbone = self._prepared(backbone, adapter)
        spec = install(adapter, backbone)
        if other := unlike(adapter.identity, identity(backbone, spec.names, None)):
            raise AdapterError(
                f"this {type(module).__name__} is not the base model that adapter {str(directory)!r} was made for: its "
                f"{', '.join(other)} differ.",
                hint="give the model as it was before the run, with the same weights.",
            )
        return with_classes(backbone, names), names, adapter.task or Classification(), adapter.tuning


def local_tensors(run: Path, client: Name | None) -> Params:
    """The tensors that never leave a client; empty if no client is requested and clients keep no tensors."""
    model = read_settings(run / rundir.ADAPTER / SETTINGS).model
    if client is None and (model is None or model.batch_norm != "local"):
        _warn_of_kept_factors(run)
        return {}  # without reading the memories of the clients
    if (directory := rundir.RunDirectory(run)).is_deployed:
        raise rundir.at_their_sites(directory)
    memories, clients = Memories(), read_clients(run / rundir.PARTITION)
    memories.restore(run / rundir.CLIENTS, load(run / rundir.CHECKPOINT).memory_mark)
    number = None if client is None else clients.number_of(client)
    memory = None if number is None else memories.of(number)
    if memory is not None and memory.local_only:
        return memory.local_only
    owners = [clients.called(owner) for owner, _ in memories.local_only()]
    if number is None and not owners:
        return {}
    raise RunError(
        f"the run {str(run)!r} has one model per client, because clients keep their norms; select a client."
        if number is None
        else f"{clients.called(number)} has no model in the run {str(run)!r}: it keeps no tensors.",
        hint=f"clients with a model: {', '.join(owners) or 'none'}.",
    )


def _refuse_other_base(directory: str | Path, model: ModelSource, other: Sequence[str], *, is_given: bool) -> None:
    """Refuses a base model that differs in `other` from the adapter's; only warns if the caller passed the model."""
    if not other:
        return
    problem = f"{model.source!r} is not the base model that adapter {str(directory)!r} was made for"
    if not is_given:
        raise AdapterError(
            f"{problem}: its {', '.join(other)} differ.",
            hint="restore the base model, for example from a copy; if it has moved, use "
            "`Predictor.from_adapter(directory, ModelSource(source=...))`.",
        )
    logger.warning("%s: its %s differ.", problem, ", ".join(other))


def refuse_changed(run: Path) -> None:
    """Refuses an adapter or files that are not as the run wrote them.

    A run of an older version, or without its checkpoint, cannot be checked.
    """
    try:
        checkpoint = load(run / rundir.CHECKPOINT) if (run / rundir.CHECKPOINT).is_file() else None
    except FormatError:
        checkpoint = None
    if checkpoint is not None:
        refuse(f"run {str(run)!r}", changed_files(run, checkpoint.origin))
        trained, _ = folded_pairs(checkpoint.params)
        refuse_other_adapter(run / rundir.ADAPTER, trained, read_adapter(run / rundir.ADAPTER).params)
        refuse_other_settings(run / rundir.ADAPTER / SETTINGS, checkpoint.origin)


def install(adapter: SavedAdapter, backbone: Backbone) -> ParamSpec:
    """Puts the adapter into `backbone`, which is edited in place and gets one lane; returns the tuned tensors' spec.

    Raises:
        AdapterError: the adapter does not fit.
    """
    adapter = placed(adapter, backbone)
    spec = adapter.tuning.apply(backbone, Lanes(1), stream(0))
    put_params(backbone, adapter.params)
    return spec


@torch.no_grad()
def put_params(backbone: Backbone, params: Params) -> None:
    """Puts `params` into the lanes of `backbone`."""
    for name, tensor in params.items():
        # Broadcasts over the lane axis, which full fine-tuning lacks.
        backbone.module.get_parameter(name).copy_(tensor)


def _was_given(adapter: SavedAdapter) -> bool:
    return adapter.model is not None and is_in_python(adapter.model.source)


def _base_model(adapter: SavedAdapter) -> ModelSource | None:
    """The base model that the adapter names; None if it does not name one."""
    recorded = adapter.model
    # A run with a backbone made by the caller records a section without source and architecture.
    is_named = recorded is not None and not _was_given(adapter)
    if recorded is not None and is_named and (recorded.source is not None or recorded.architecture is not None):
        return recorded
    return ModelSource(source=adapter.base) if adapter.base else None


def _class_names(model: ModelSource) -> tuple[str, ...]:
    """The class names in the base model's configuration, in label order."""
    return class_names_of(read_config(model))


def _check_names(new_names: Sequence[str], names: Sequence[str]) -> None:
    if new_names and len(new_names) != len(names):
        raise AdapterError(
            f"{len(new_names)} `class_names` were given ({listed(new_names)}), but the adapter has {len(names)} "
            f"({listed(names)}).",
            hint="give one name per class, in label order, or none.",
        )


def _warn_of_kept_factors(run: Path) -> None:
    """Logs that the adapter of a run is no whole model if a factor of each pair stayed with the clients."""
    # Unchecked, because files that the configuration names may be gone: the adapter needs none of them.
    table = tomllib.loads((run / rundir.CONFIG).read_text(encoding="utf-8"))
    name = table.get("aggregation", {}).get("name")
    kept = LOW_RANK[name].keeps if name in LOW_RANK else None
    if kept is not None:
        logger.warning(
            "each client of the run %r keeps its own %s (`aggregation.name` is %r): without a client this is the model "
            "with those that the run started with, which nobody has trained; select one with `--client NAME`.",
            str(run),
            kept,
            name,
        )
