"""The files of a local checkpoint: what can be said of them before transformers reads them.

A directory that is no checkpoint of transformers often gets an error from deep inside, or is taken for another family
by the name of its folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedelta.errors import ModelError

_EXPECTED = (
    "expected a directory with `config.json` and `model.safetensors`, a reachable hub name, or `bundled:vit-micro`."
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def unreadable(source: str, error: Exception) -> ModelError:
    """The error for a model that cannot be loaded, with what was expected."""
    reason = f"{error}".strip()
    if isinstance(error, KeyError) or not reason:
        reason = f"{type(error).__name__} {reason}"
    if "trust_remote_code" in reason:
        return ModelError(
            f"model {source!r} cannot be loaded: it wants to run code of its own, which fedelta never does.",
            hint="take a model of a family that transformers itself has, or a checkpoint converted to one.",
        )
    return ModelError(f"model {source!r} cannot be loaded: {reason}", hint=_EXPECTED)


def check_configuration(source: str, place: str) -> None:
    """Refuses a local directory whose `config.json` is not one of transformers.

    Args:
        source: as the user named it.
        place: the directory, or a hub name, of which nothing is known.

    Raises:
        ModelError: an adapter, a model of timm, or a configuration that names no family.
    """
    directory = Path(place)
    if not directory.is_dir():
        return
    if (directory / "adapter_config.json").is_file():
        # transformers would go on to load the model that the adapter names, from wherever that is.
        raise ModelError(
            f"model {source!r} is an adapter: it holds `adapter_config.json`.",
            hint="give it as `model.adapter`, and its base model as `model.source`.",
        )
    path = directory / "config.json"
    if not path.is_file():
        raise unreadable(source, FileNotFoundError(f"it has no `config.json`{_instead(directory)}"))
    config = _object(source, path)
    family = config.get("model_type")
    if family == "timm_wrapper" or (not family and "architecture" in config):
        raise ModelError(
            f"model {source!r} is one of timm ({config.get('architecture')!r}), which fedelta does not read.",
            hint="take a network of transformers' own, such as `microsoft/resnet-50` or `google/vit-base-patch16-224`.",
        )
    if not family:
        raise unreadable(source, ValueError("its `config.json` names no `model_type`."))


def check_weights(source: str, place: str) -> None:
    """Refuses a local directory without weights in safetensors.

    Raises:
        ModelError: they are missing, or there are pickles alone.
    """
    directory = Path(place)
    if not directory.is_dir() or any(directory.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    if not pickles:
        raise unreadable(source, FileNotFoundError("it has no file named model.safetensors."))
    raise ModelError(
        f"model {source!r} has its weights in `{pickles[0]}` alone, a pickle, which may run code and is not read.",
        hint="where you trust it, load it with transformers and save it again with `save_pretrained`, which writes "
        "safetensors.",
    )


def _object(source: str, path: Path) -> Mapping[str, object]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(source, ValueError(f"its `config.json` is not a valid JSON file: {error}")) from error
    if not isinstance(value, dict):
        raise unreadable(source, ValueError(f"its `config.json` holds a JSON {type(value).__name__}, no object."))
    return value


def _instead(directory: Path) -> str:
    """What the directory holds that explains a missing configuration."""
    if (directory / "model_index.json").is_file():
        return ": it is a pipeline of diffusers."
    below = sorted(path.parent.name for path in directory.glob("*/config.json"))
    return f", but there is one in {below[0]!r} below it." if below else "."
