"""Checks the files of a local checkpoint before transformers reads them.

For a directory that is not a checkpoint, transformers raises an obscure error, or guesses a family from the name of the
folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedelta.errors import ModelError

_EXPECTED = (
    "expected a directory with `config.json` and `model.safetensors`, a reachable hub name, or `bundled:vit-micro`."
)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # the names that transformers looks for
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def unreadable(source: str, error: Exception) -> ModelError:
    """The error for a model that cannot be loaded, with a hint at what was expected."""
    reason = f"{error}".strip()
    if isinstance(error, KeyError) or not reason:
        reason = f"{type(error).__name__} {reason}"
    if "trust_remote_code" in reason:
        return ModelError(
            f"model {source!r} cannot be loaded: it contains custom code, which fedelta never runs.",
            hint="use a model of a family that is part of transformers, or convert the checkpoint to one.",
        )
    if not_reached(error):
        hint = (
            f"where there is a network, `hf download {source} --local-dir FOLDER`, copy the folder and set "
            "`model.source` to it; or check the spelling, and that HF_HUB_OFFLINE is not set."
        )
        return ModelError(
            f"model {source!r} is no directory here, not in the hub's cache on this machine, and the hub cannot be "
            "reached.",
            hint=hint,
        )
    return ModelError(f"model {source!r} cannot be loaded: {reason}", hint=_EXPECTED)


def not_reached(error: BaseException) -> bool:
    """Whether something was looked for on the hub, which cannot be reached."""
    words = ("couldn't connect to", "offline mode", "cannot reach", "outgoing traffic has been disabled")
    link: BaseException | None = error
    while link is not None:
        if any(word in str(link).lower() for word in words):
            return True
        link = link.__cause__ or link.__context__
    return False


def check_configuration(source: str, place: str) -> None:
    """Refuses a local directory whose `config.json` is not a transformers configuration.

    Args:
        source: the name that the user gave.
        place: the directory, or a hub name, which is not checked.

    Raises:
        ModelError: an adapter, a model of timm, or a configuration that names no family.
    """
    directory = Path(place)
    if not directory.is_dir():
        return
    if (directory / "adapter_config.json").is_file():
        # transformers would load the base model that the adapter names, possibly from a hub.
        raise ModelError(
            f"model {source!r} is an adapter: it holds `adapter_config.json`.",
            hint="set `model.adapter` to it, and `model.source` to its base model.",
        )
    path = directory / "config.json"
    if not path.is_file():
        raise unreadable(source, FileNotFoundError(f"it has no `config.json`{_instead(directory)}"))
    config = _object(source, path)
    family = config.get("model_type")
    if family == "timm_wrapper" or (not family and "architecture" in config):
        raise ModelError(
            f"model {source!r} is a timm model ({config.get('architecture')!r}), which fedelta does not support.",
            hint="use a model from transformers, such as `microsoft/resnet-50` or `google/vit-base-patch16-224`.",
        )
    if not family:
        raise unreadable(source, ValueError("its `config.json` has no `model_type`."))


def check_weights(source: str, place: str) -> None:
    """Refuses a local directory without weights that transformers finds as safetensors.

    Raises:
        ModelError: there are no weights, or only pickled ones.
    """
    directory = Path(place)
    if not directory.is_dir() or any((directory / name).is_file() for name in _WEIGHTS):
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    if not pickles and any(directory.glob("*.safetensors")):
        return  # transformers reports the names that it looked for
    if not pickles:
        raise unreadable(source, FileNotFoundError("it has no file named model.safetensors."))
    raise ModelError(
        f"model {source!r} has no `model.safetensors`, only `{pickles[0]}`: a pickle, which can run code and is "
        "never read.",
        hint="if you trust it, load it with transformers and save it with `save_pretrained`, which writes safetensors.",
    )


def _object(source: str, path: Path) -> Mapping[str, object]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(source, ValueError(f"its `config.json` is not a valid JSON file: {error}")) from error
    if not isinstance(value, dict):
        raise unreadable(source, ValueError(f"its `config.json` holds a JSON {type(value).__name__}, not an object."))
    return value


def _instead(directory: Path) -> str:
    """A likely reason for the missing configuration, as the end of a sentence."""
    if (directory / "model_index.json").is_file():
        return ": it is a diffusers pipeline."
    subfolders = sorted(path.parent.name for path in directory.glob("*/config.json"))
    return f", but its subfolder {subfolders[0]!r} has one." if subfolders else "."
