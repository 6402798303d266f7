"""The measures of a finished model, without training: of a run, of an adapter, or of a model as it starts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedelta.assembly.model import TunedModel, tuned_model
from fedelta.assembly.origin import check_origin, evaluated
from fedelta.assembly.site import build_site, details, few_rows, num_lanes, read_data
from fedelta.config import WITHOUT_ADAPTER, Config, load_config
from fedelta.data.batches import FederatedData
from fedelta.errors import ModelError
from fedelta.inference.adapter import read_adapter
from fedelta.inference.adapter_settings import read_settings, refuse_other_settings
from fedelta.inference.directory import SETTINGS
from fedelta.inference.predictions import table_of
from fedelta.modalities.settings import Preparation
from fedelta.record.checkpoint import Checkpoint, load
from fedelta.record.origin import Origin, refuse_other_adapter, settings_of
from fedelta.record.rundir import RunDirectory
from fedelta.tasks.details import Details


def evaluate_adapter(
    config: str | Path,
    adapter: str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    predictions: Path | None = None,
) -> Details:
    """What the task measures on the test set, without training.

    Args:
        config: a TOML file, or a run directory, whose own adapter is taken when none is given.
        adapter: a PEFT adapter directory; without one the model is measured as it starts.
        overrides: `section.key=value` strings.
        predictions: a CSV file to write, with the answer to each example.

    Raises:
        InputError: something cannot be used; `predictions` exists, or there is more than one model.
        ModelError: without an adapter, the checkpoint's head is for other classes.
    """
    path, kept_by = Path(config), None
    if path.is_dir():
        run = RunDirectory.open(path)
        if adapter is None:
            run.refuse_unfinished()
        # Another adapter than the run's own has nothing to do with what its clients keep.
        kept_by = run if adapter is None else None
        # The adapter that the run started from may be gone; its own is all that is needed.
        path, adapter, overrides = run.config, adapter or run.adapter, [*WITHOUT_ADAPTER, *overrides]
    loaded = load_config(path, overrides)
    preparation = Preparation() if adapter is None else read_settings(Path(adapter) / SETTINGS).preparation
    backbone, data = read_data(loaded, preparation=preparation)
    # The adapter says what is tuned, whatever the configuration was written for.
    start = None if adapter is None else read_adapter(adapter, backbone.anatomy)
    if start is None and backbone.lost_head is not None:
        raise ModelError(
            f"{backbone.lost_head}: there is nothing to evaluate.",
            hint="give data with the checkpoint's classes, or an adapter that was trained for those of the data.",
        )
    model = tuned_model(
        loaded, backbone, data.class_names, num_lanes=num_lanes(loaded), adapter=start, sample=few_rows(data)
    )
    site = build_site(loaded, model, data)
    if kept_by is not None:
        site.restore(kept_by.clients, _checked(kept_by, loaded, model, data).memory_mark)
    if predictions is None:
        return details(site, model.params, data.test, data.class_names)
    with table_of(predictions, data, loaded.task) as write:
        return details(site, model.params, data.test, data.class_names, write)


def _checked(run: RunDirectory, config: Config, model: TunedModel, data: FederatedData) -> Checkpoint:
    """The checkpoint of a finished run whose own adapter is measured.

    Raises:
        CheckpointError: adapter, `config.toml`, base weights or test set are not those of the run; where `config` asks
            for another model or other data, that is meant.
    """
    checkpoint, own = load(run.checkpoint), load_config(run.config, WITHOUT_ADAPTER)
    refuse_other_adapter(run.adapter, checkpoint.params, model.params)
    refuse_other_settings(run.adapter / SETTINGS, checkpoint.origin)
    inputs = dict(model.identity) if config.model == own.model else {}
    same_data = all(getattr(config, key) == getattr(own, key) for key in ("seed", "data", "partition", "task"))
    inputs |= evaluated(data) if same_data else {}
    settings = settings_of(own.to_table())
    check_origin(run.path, checkpoint, Origin(settings, inputs), config)
    return checkpoint
