"""The model card of an adapter: what it is, how it was trained, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from fedelta.inference.metadata import header
from fedelta.inference.origin import origin_of
from fedelta.inference.snippets import BASE, Subject, block, ours, stock
from fedelta.modalities.base import Modality
from fedelta.modalities.settings import Preparation
from fedelta.modalities.table import MODALITIES
from fedelta.privacy.shown import shown_epsilon
from fedelta.record import numbers
from fedelta.record.neutral import code, markdown
from fedelta.record.privacy import COVERED, FROM_COHORTS, NOT_COVERED
from fedelta.settings.paths import IN_PYTHON, is_in_python
from fedelta.tasks.base import Loader, Measure, Task
from fedelta.tasks.choice import task_of

# Keys of a card that appear in its text, or that do not interest readers.
# A card may be published: who took part is in the run directory.
_UNLISTED = frozenset({
    "modality", "extra_inputs", "config", "is_native", "primary_measure", "by_class", "by_client", "sites",
    "measures_of_sites", "too_few_sites", "privacy", "epsilon_note", "stopped",
})  # fmt: skip
_NUM_NAMES = 20  # class names that are shown
_HEADLESS = """
The head was not trained and is not in this directory: it is that of the base model. fedelta reorders it to the classes
above by name or, if the base model has none for them, initialises it from the seed in `fedelta.json`. Stock PEFT does
neither."""
_NORMS = """
Every client keeps its own norms, which are not in this directory: it holds those that the run started with. The
model of a client is available from the run directory: `Predictor.open(RUN, client)`."""


def render(
    tuning_name: str,
    base: str,
    class_names: tuple[str, ...] | None,
    card: Mapping[str, object],
    *,
    has_weights: bool,
    preparation: Preparation,
) -> str:
    """Markdown with the hub's YAML header.

    Args:
        tuning_name: such as "lora".
        base: name or path of the base model, "" without one.
        class_names: in label order, or None.
        card: figures of the run, units in the key names (`*_bytes`, `*_seconds`); `modality`, `extra_inputs` and
            `config` as for `write_adapter`.
        has_weights: whether `base` gives the base model's weights; False for random weights and replaced norms.
        preparation: how examples became inputs.
    """
    task, loader, source = _task(card), _loader(card), str(_section(_section(card, "config"), "model").get("source"))
    origin, extra = origin_of(base), card.get("extra_inputs")
    subject = Subject(
        origin,
        str(card.get("modality") or ""),
        task,
        class_names,
        preparation,
        is_given=is_in_python(source) and not base,
        is_native=bool(card.get("is_native")),
        extra_inputs=extra if isinstance(extra, Mapping) else {},
    )
    return "\n".join([
        *header(tuning_name, origin, card, task, loader.pipeline_tag if loader is not None else None),
        f"# {tuning_name} adapter" + (f" of {code(origin.name)}\n" if base else "\n"),
        "Fine-tuned with fedelta across clients that kept their data: only the",
        "tensors in this directory were sent.\n",
        *([f"{len(class_names)} {_task(card).output[1]}: {_shortened(class_names)}\n"] if class_names else []),
        "## Federated training\n",
        *_figures(card),
        *_warnings(card),
        *_preparation(card, preparation),
        *_privacy(card),
        "\n## Loading\n",
        *_origin(subject, source),
        *_loading(tuning_name, subject, loader, has_weights=has_weights),
        "",
    ])  # fmt: skip


def _shortened(names: tuple[str, ...]) -> str:
    shown = ", ".join(map(markdown, names[:_NUM_NAMES]))
    return shown if len(names) <= _NUM_NAMES else f"{shown} and {len(names) - _NUM_NAMES} more (in `fedelta.json`)"


def _figures(card: Mapping[str, object]) -> list[str]:
    unlisted = _UNLISTED | (FROM_COHORTS if card.get("privacy_unit") == "client" else frozenset())
    rows = {key: value for key, value in card.items() if key not in unlisted and value is not None}
    config = card.get("config")
    if isinstance(config, Mapping):
        for section in ("data", "partition", "strategy", "client", "codec"):
            if section in config:
                rows[section] = config[section]
    modality, data = _modality(card), rows.get("data")
    if modality is not None and isinstance(data, Mapping):
        foreign = {key for kind in MODALITIES.values() for key in kind.settings} - modality.settings
        rows["data"] = {name: value for name, value in data.items() if name not in foreign}
    if not rows:
        return ["Not recorded."]
    measures = _task(card).measured
    lines = (f"| {_label(key, measures)} | {_text(key, value, measures)} |" for key, value in rows.items())
    return ["| | |", "|---|---|", *lines]


def _measure_of(key: str, measures: Mapping[str, Measure]) -> tuple[str, Measure | None]:
    """The prefix of a key, such as `best_`, and its measure; None if the key is not of a measure."""
    for kind in ("final_", "best_", "mean_exit_", ""):
        if key.startswith(kind) and (measure := measures.get(key.removeprefix(kind))) is not None:
            return kind, measure
    return "", None


def _label(key: str, measures: Mapping[str, Measure]) -> str:
    kind, measure = _measure_of(key, measures)
    if measure is not None:
        return f"{kind.replace('_', ' ')}{measure.label}"
    return key.removeprefix("num_").removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")


def _text(key: str, value: object, measures: Mapping[str, Measure]) -> str:
    _, measure = _measure_of(key, measures)
    if isinstance(value, Mapping):
        text = ", ".join(_entry(str(name), item, measures) for name, item in value.items() if item is not None)
    elif measure is not None and isinstance(value, int | float):
        text = numbers.shown(value, measure)
    elif key.endswith("_bytes") and isinstance(value, int | float):
        text = numbers.size(value)
    elif key.endswith("_seconds") and isinstance(value, int | float):
        text = numbers.duration(value)
    elif key in ("epsilon", "epsilon_rdp") and isinstance(value, float):
        text = shown_epsilon(value)
    elif isinstance(value, float):
        text = f"{value:g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        text = numbers.count(value)
    else:
        # A card may be published: a path of this machine is nobody else's business.
        text = markdown(Path(value).name if isinstance(value, str) and Path(value).is_absolute() else str(value))
    return text


def _entry(name: str, value: object, measures: Mapping[str, Measure]) -> str:
    text = _text(name, value, measures)
    name = measures[name].label if name in measures else markdown(name)
    return f"{name} ({text})" if isinstance(value, Mapping) else f"{name} {text}"


def _warnings(card: Mapping[str, object]) -> list[str]:
    section = card.get("config")
    config: Mapping[str, object] = section if isinstance(section, Mapping) else {}
    too_few, _, _ = str(card.get("too_few_sites", "")).partition(":")  # what follows names the sites
    if card.get("privacy_unit") == "client":
        too_few = ""  # it tells how often sites took part
    return [
        *([f"\n{too_few.removesuffix('.')}."] if too_few else []),
        *([_HEADLESS] if _section(config, "tuning").get("train_head") is False else []),
        *([_NORMS] if _section(config, "model").get("batch_norm") == "local" else []),
    ]


def _privacy(card: Mapping[str, object]) -> list[str]:
    """What is promised, to whom and for what; nothing for a run without privacy."""
    unit = card.get("privacy_unit")
    if not isinstance(unit, str):
        return []
    lines = ["\n## Differential privacy\n", markdown(str(card.get("privacy", "")))]
    if card.get("stopped"):
        lines.append(markdown(str(card["stopped"])))
    if card.get("epsilon") is not None:
        lines += [f"\nCovered: {COVERED[unit]}.", f"\nNot covered: {NOT_COVERED[unit]}."]
        lines.append(f"\nAccounted for by dp-accounting {version('dp-accounting')}.")
    return lines


def _section(config: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _preparation(card: Mapping[str, object], preparation: Preparation) -> list[str]:
    modality = _modality(card)
    note = "" if modality is None else modality.card_note(preparation)
    return [f"\n{note}"] if note else []


def _modality(card: Mapping[str, object]) -> type[Modality] | None:
    return MODALITIES.get(str(card.get("modality")))


def _task(card: Mapping[str, object]) -> Task:
    config = card.get("config")
    return task_of(config if isinstance(config, Mapping) else {})


def _loader(card: Mapping[str, object]) -> Loader | None:
    return _task(card).loader(str(card.get("modality")))


def _loading(tuning_name: str, subject: Subject, loader: Loader | None, *, has_weights: bool) -> list[str]:
    own = ["With fedelta:\n", *block(ours(subject))]
    if tuning_name != "lora":
        return [
            f"Stock PEFT cannot load this directory: it does not know the tuning method `{tuning_name}`.",
            "The tensors in `adapter_model.safetensors` are named by their paths in the tuned model, after",
            "`base_model.model.`; `fedelta.json` holds the tuning settings.\n",
            *own,
        ]
    if subject.is_given:
        return own
    if not has_weights or loader is None:
        return [
            "The weights of its base model are random, its batch norms were replaced, or it has no name, so stock",
            "PEFT cannot load the same weights. `fedelta.json` holds the model and the seed, if the run knew them.\n",
            *own,
        ]
    lines = ["With stock PEFT:\n", *block(stock(loader, subject)), ""]
    if subject.extra_inputs:
        arguments = ", ".join(f"{name}={value!r}" for name, value in subject.extra_inputs.items())
        lines += [
            "It was trained with another image size than the base model, with interpolated position embeddings;",
            f"call it as `model(pixel_values, {arguments})`.\n",
        ]
    return [*lines, *own]


def _origin(subject: Subject, source: str) -> list[str]:
    """Where the base model has to be found."""
    origin = subject.origin
    if subject.is_given:
        name = code(source.removeprefix(IN_PYTHON))
        return [f"Its base model, {name}, was given as an object: give it again, as it was before the run.\n"]
    if not origin.folder:
        return []
    parent = f" Its `config.json` says that it was loaded from {code(origin.parent)}." if origin.parent else ""
    return [f"Its base model is a directory, {code(origin.folder)}: put its path in place of `{BASE}`.{parent}\n"]
