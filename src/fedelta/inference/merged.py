"""Writes the model of a run as a whole: with what was tuned folded into the base, as transformers loads it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from fedelta.errors import InputError
from fedelta.inference.adapter import read_adapter
from fedelta.inference.predict import Predictor
from fedelta.modalities.dialogues import Dialogues
from fedelta.models.saving import save_model
from fedelta.record import rundir

logger = logging.getLogger("fedelta")


def write_merged(run: str | Path, directory: str | Path) -> Path:
    """The directory that was written: the model, and for a language model its tokenizer and template.

    Args:
        run: a finished run.
        directory: new or empty.

    Raises:
        InputError: `directory` holds files, or the tuning method cannot be folded into its base.
        RunError, AdapterError, ModelError: as for `Predictor.open`.
    """
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{str(target)!r} holds files already.", hint="give a new directory, with `--out`.")
    predictor = Predictor.open(run)
    adapter = read_adapter(Path(run) / rundir.ADAPTER)
    tuning, model = adapter.tuning, adapter.model
    if model is not None and model.quantization != "none":
        logger.warning("the base is quantised (%s): the pairs are folded into its float32 weights.", model.quantization)
        plain = model.model_copy(update={"quantization": "none"})
        predictor = Predictor.from_adapter(Path(run) / rundir.ADAPTER, plain)
    if not tuning.merges:
        raise InputError(
            f"tuning method {tuning.name!r} stays beside the base model and cannot be folded into it.",
            hint="use the adapter directory, with `fedelta.inference.predict.Predictor`.",
        )
    tuning.merge(predictor.backbone)
    building = target.with_name(f".{target.name}.partial")
    shutil.rmtree(building, ignore_errors=True)
    try:
        module, modality = predictor.backbone.module, predictor.backbone.modality
        if isinstance(modality, Dialogues):
            save_model(module, building, modality.tokenizer, modality.template.source)
        else:
            save_model(module, building)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rmdir()
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target
