"""`fedelta.json`: the settings of an adapter that stock PEFT does not know."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import Field, FiniteFloat, ValidationError

from fedelta import __version__
from fedelta.errors import AdapterError
from fedelta.modalities.settings import AudioSettings, Preparation, Resize
from fedelta.models.source import ModelSource
from fedelta.plugins import refuse_missing
from fedelta.record.files import to_json
from fedelta.record.origin import Origin, other_words, refuse
from fedelta.settings import Settings
from fedelta.settings.base import without_none
from fedelta.tasks.choice import ChosenTask


class AdapterSettings(Settings):
    """The content of `fedelta.json`; all defaults for an adapter from another tool.

    Args:
        fedelta_version: of the writer, "" when unknown.
        tuning: section `[tuning]`; checked against the method that `adapter_config.json` names.
        task: what is predicted; None if unknown.
        class_names: in label order, or None.
        model: the base model, without the adapter that a run started from, which the tensors contain.
        seed: of the run, for base weights that are random.
        max_length: maximum number of tokens of a text; None for the default.
        audio: how recordings become the model's inputs, None for images and texts.
        resize: how images were resized to the model's input; None for recordings and texts.
        processor: the content of a stock `preprocessor_config.json` that does the same.
        value_range: values of images of more than 8 bits that became black and white.
        head: paths of what the run took for the head of a model that was given as an object; None for others.
        template: the chat template of a language model, as in `chat_template.jinja`.
        identity: fingerprint of the base model (`tuning/identity.py`); empty if unknown.
        plugins: records of the plug-ins of its tuning method and task (`plugins.used_by`).
        weights_sha256: of the file with the tensors; "" if unknown.
        config_sha256: of `adapter_config.json`, checked in run directories only; elsewhere it may be edited.
    """

    fedelta_version: str = ""
    tuning: dict[str, Any] | None = None  # Any: the fields of a method
    task: ChosenTask | None = None
    class_names: tuple[str, ...] | None = None
    model: ModelSource | None = None
    seed: int = Field(default=0, ge=0)
    max_length: int | None = Field(default=None, ge=1)
    audio: AudioSettings | None = None
    resize: Resize | None = None
    processor: dict[str, Any] | None = None  # Any: JSON values
    value_range: tuple[FiniteFloat, FiniteFloat] | None = None
    template: str | None = None
    head: tuple[str, ...] | None = None
    identity: dict[str, str] = Field(default_factory=dict)
    plugins: tuple[dict[str, Any], ...] = ()  # Any: JSON values
    weights_sha256: str = ""
    config_sha256: str = ""

    @property
    def preparation(self) -> Preparation:
        """How examples became inputs in the run."""
        preparation = Preparation(**{name: getattr(self, name) for name in Preparation.model_fields})
        # Versions that did not record the preparation stretched images.
        is_old = bool(self.fedelta_version) and preparation == Preparation()
        return preparation.model_copy(update={"resize": "stretch"}) if is_old else preparation

    def to_json(self) -> str:
        """The content of the file."""
        return to_json(self.model_dump(mode="json"), indent=2) + "\n"


def read_settings(path: Path) -> AdapterSettings:
    """The content of the `fedelta.json` at `path`; all defaults if there is no such file.

    Raises:
        AdapterError: the file cannot be read, or has an unknown key, which must not be ignored.
        PluginError: plug-ins that the adapter needs are not loaded.
    """
    try:
        content = path.read_bytes()
        refuse_missing(_plugins(content), f"adapter {str(path.parent)!r}")
        return AdapterSettings.model_validate_json(content)
    except FileNotFoundError:
        return AdapterSettings()
    except OSError as error:
        raise AdapterError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    except ValidationError as error:
        raise AdapterError(
            f"{str(path)!r} cannot be used:{explained(error)}",
            hint=f"write the adapter again, or read it with the version that wrote it; this is {__version__}.",
        ) from error


def _plugins(content: bytes) -> object:
    """The value of `plugins` in a file, before the task is checked, which may be from a plug-in."""
    try:
        record = json.loads(content)
    except ValueError:
        return None
    return record.get("plugins") if isinstance(record, dict) else None


def refuse_other_settings(path: Path, origin: Origin) -> None:
    """Raises if `fedelta.json` or `adapter_config.json` in a run directory has changed.

    Raises:
        CheckpointError: names the differences.
    """
    settings, config = read_settings(path), path.with_name("adapter_config.json")
    problems = other_words(
        origin, {"seed": settings.seed, "tuning": without_none(settings.tuning or {})}, settings.class_names or ()
    )
    if not problems and hashlib.sha256(config.read_bytes()).hexdigest() != settings.config_sha256:
        problems.append(f"`{config.name}` is not as the run wrote it")
    refuse(f"adapter {str(path.parent)!r}", problems)


def explained(error: ValidationError) -> str:
    """One line per problem, each after a line break."""
    return "".join(
        f"\n  - `{'.'.join(map(str, problem['loc']))}` is {problem['input']!r}: {problem['msg']}"
        if problem["loc"]
        else f"\n  - {problem['msg']}"
        for problem in error.errors()
    )
