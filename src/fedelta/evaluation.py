"""`fedelta evaluate`: measures of a run, of an adapter, or of a model before training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedelta.assembly.lanes import num_lanes
from fedelta.assembly.model import TunedModel, tuned_model
from fedelta.assembly.objects import Objects
from fedelta.assembly.origin import check_origin, evaluated
from fedelta.assembly.settling import adopting, settled
from fedelta.assembly.site import build_site, details, few_rows, read_data
from fedelta.config import WITHOUT_ADAPTER, Config, load_config
from fedelta.data.batches import FederatedData
from fedelta.data.folders import Splits
from fedelta.errors import ModelError
from fedelta.federation.client import Site
from fedelta.inference.adapter import read_adapter
from fedelta.inference.adapter_settings import read_settings, refuse_other_settings
from fedelta.inference.directory import SETTINGS
from fedelta.inference.folding import folded_pairs
from fedelta.inference.predictions import table_of
from fedelta.modalities.settings import Preparation
from fedelta.models.hub import Backbone
from fedelta.record.checkpoint import Checkpoint, load
from fedelta.record.origin import Origin, refuse_other_adapter, settings_of
from fedelta.record.rundir import RunDirectory, at_their_sites
from fedelta.tasks.details import Details


def evaluate_adapter(
    config: str | Path,
    adapter: str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    predictions: Path | None = None,
    objects: Objects | None = None,
) -> Details:
    """Returns the measures of a model on the test set; does not train.

    Args:
        config: a TOML file, or a run directory, whose adapter is the default for `adapter`.
        adapter: a PEFT adapter directory; None measures the model before training.
        overrides: `section.key=value` strings.
        predictions: a CSV file to write, with the answer to each example.
        objects: model and data, if the run was given them as objects.

    Raises:
        InputError: something given cannot be used, `predictions` exists, or clients have different models.
        ModelError: there is no adapter, and the checkpoint's head is for other classes.
    """
    path, source_run = Path(config), None
    if path.is_dir():
        run = RunDirectory.open(path)
        if adapter is None:
            run.refuse_unfinished()
        # The tensors that clients keep belong to the run's own adapter only.
        source_run = run if adapter is None else None
        # The adapter that the run started from may be gone; the one that it wrote is enough.
        path, adapter, overrides = run.config, adapter or run.adapter, [*WITHOUT_ADAPTER, *overrides]
    loaded = load_config(path, overrides)
    preparation = Preparation() if adapter is None else read_settings(Path(adapter) / SETTINGS).preparation
    backbone, data = read_data(loaded, *_made(loaded, objects), preparation=preparation)
    original, loaded = loaded, settled(adopting(loaded, adapter), data)
    # The adapter decides which tensors are tuned, whatever `[tuning]` says.
    start = None if adapter is None else read_adapter(adapter, backbone.anatomy)
    if start is None:
        _refuse_lost_head(backbone)
    model = tuned_model(
        loaded, backbone, data.class_names, num_lanes=num_lanes(loaded, backbone), adapter=start, sample=few_rows(data)
    )
    site = build_site(loaded, model, data)
    if source_run is not None:
        _restore(site, source_run, _checked(source_run, original, model, data))
    if predictions is None:
        return details(site, model.params, data.test, data.class_names)
    with table_of(predictions, data, loaded.task) as write:
        return details(site, model.params, data.test, data.class_names, write)


def _refuse_lost_head(backbone: Backbone) -> None:
    """Raises if the model has no head that was trained for the classes."""
    if backbone.lost_head is not None:
        raise ModelError(
            f"{backbone.lost_head}: there is nothing to evaluate.",
            hint="give data with the checkpoint's classes, or an adapter that was trained for those of the data.",
        )


def _made(config: Config, objects: Objects | None) -> tuple[Backbone | None, FederatedData | Splits | None]:
    return (None, None) if objects is None else objects.parts(config)


def _restore(site: Site, run: RunDirectory, checkpoint: Checkpoint) -> None:
    """Gives the site what the clients of the run keep.

    Raises:
        RunError: it is needed, but only at the sites of a deployment.
    """
    if not run.is_deployed:
        site.restore(run.clients, checkpoint.memory_mark)
    elif site.engine.spec.kept:
        raise at_their_sites(run)


def _checked(run: RunDirectory, config: Config, model: TunedModel, data: FederatedData) -> Checkpoint:
    """Returns the checkpoint of the run whose adapter is measured, once its inputs are checked.

    Raises:
        CheckpointError: adapter, `config.toml`, base weights or test set have changed since the run. The model or the
            data are not compared if `config` overrides them.
    """
    checkpoint, original = load(run.checkpoint), load_config(run.config, WITHOUT_ADAPTER)
    trained, loaded = (folded_pairs(params)[0] for params in (checkpoint.params, model.params))
    refuse_other_adapter(run.adapter, trained, loaded)
    refuse_other_settings(run.adapter / SETTINGS, checkpoint.origin)
    inputs = dict(model.identity) if config.model == original.model else {}
    same_data = all(getattr(config, key) == getattr(original, key) for key in ("seed", "data", "partition", "task"))
    inputs |= evaluated(data.test, data.class_names) if same_data else {}
    settings = settings_of(original.to_table())
    check_origin(run.path, checkpoint, Origin(settings, inputs), config)
    return checkpoint
