"""The header of a model card: what the hub reads of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedelta.data.files import AT_THE_SITES, NAMES
from fedelta.inference.origin import Origin, is_hub_name
from fedelta.settings.paths import IN_PYTHON, is_in_python
from fedelta.tasks.base import Measure, Task

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# Our measures to the names that the hub has for them.
_ON_THE_HUB = {
    "macro_f1": "f1",
    "micro_f1": "f1",
    "entity_f1": "f1",
    "auroc": "roc_auc",
    "r2": "r_squared",
}


def header(
    tuning_name: str, origin: Origin, card: Mapping[str, object], task: Task, pipeline_tag: str | None
) -> list[str]:
    """The lines of a card's header.

    Args:
        tuning_name: such as "lora".
        origin: of the base model.
        card: figures of the run.
        task: what is predicted.
        pipeline_tag: of the task, for the hub.
    """
    from huggingface_hub import ModelCardData

    source = _source(card)
    on_hub = _is_on_hub(source)
    measured = _measured(card, task)
    results = _results(measured, pipeline_tag, _named(source))
    data = ModelCardData(
        license=origin.license or None,
        library_name="peft",
        base_model=origin.hub or None,
        datasets=[source] if on_hub else None,
        metrics=sorted({_ON_THE_HUB.get(measure.name, measure.name) for measure, _ in measured}) or None,
        pipeline_tag=pipeline_tag,
        tags=["federated-learning", "fedelta", tuning_name],
        model_name=f"{tuning_name} adapter" if results else None,
        eval_results=results or None,
    )
    return ["---", *data.to_yaml(line_break="\n").rstrip().split("\n"), "---", ""]


def _results(measured: list[tuple[Measure, float]], pipeline_tag: str | None, data: str) -> list[EvalResult]:
    """What the hub shows as results; nothing for a task that it has no name for."""
    from huggingface_hub import EvalResult

    if pipeline_tag is None or not data:
        return []
    return [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=data,
            dataset_name=data,
            metric_type=_ON_THE_HUB.get(measure.name, measure.name),
            metric_name=measure.label,
            metric_value=round(value, 6),
        )
        for measure, value in measured
    ]


def _measured(card: Mapping[str, object], task: Task) -> list[tuple[Measure, float]]:
    """The measures of the finished model on the test set, without the loss."""
    values = card.get("measures")
    if not isinstance(values, Mapping):
        return []
    return [
        (measure, float(values[name]))
        for name, measure in task.measured.items()
        if name != task.loss.name and isinstance(values.get(name), int | float)
    ]


def _source(card: Mapping[str, object]) -> str:
    config = card.get("config")
    data = config.get("data") if isinstance(config, Mapping) else None
    source = data.get("source") if isinstance(data, Mapping) else None
    return source if isinstance(source, str) else ""


def _is_on_hub(source: str) -> bool:
    is_ours = source in {AT_THE_SITES, *NAMES} or is_in_python(source)
    return not is_ours and not Path(source).exists() and is_hub_name(source)


def _named(source: str) -> str:
    """What data are called on another machine than this one."""
    return Path(source).name if Path(source).is_absolute() else source.removeprefix(IN_PYTHON)
