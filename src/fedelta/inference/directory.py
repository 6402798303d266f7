"""The files of an adapter directory: written atomically, and read with checks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fedelta.durable import sync_directory, write_atomic
from fedelta.errors import AdapterError, listed
from fedelta.record.files import Record

WEIGHTS, CONFIG, CARD, SETTINGS = "adapter_model.safetensors", "adapter_config.json", "README.md", "fedelta.json"
PROCESSOR = "preprocessor_config.json"  # of adapters for images
TEMPLATE = "chat_template.jinja"  # of adapters for language models


def refuse_foreign(directory: Path, target: Path) -> None:
    """Raises if a directory to be replaced holds files that do not belong to an adapter."""
    if target.is_dir():
        foreign = sorted(
            {entry.name for entry in target.iterdir()} - {WEIGHTS, CONFIG, CARD, SETTINGS, PROCESSOR, TEMPLATE}
        )
    else:
        foreign = [target.name] if target.exists() else []
    if foreign:
        raise AdapterError(
            f"{str(directory)!r} is not an adapter directory: it holds {listed(foreign, 3)}.",
            hint="use a new or empty directory.",
        )


def replace_directory(target: Path, contents: Mapping[str, str | bytes]) -> None:
    """Puts a directory with `contents` at `target`.

    A non-empty directory cannot be replaced in one step, so the old one is renamed first. If the process is killed
    between the two renames, the old one is left under a hidden name, where the next write finds it.
    """
    building, previous = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.previous")
    target.parent.mkdir(parents=True, exist_ok=True)
    if previous.is_dir() and not target.exists():
        previous.rename(target)
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir()
        for name, content in contents.items():
            write_atomic(building / name, content)
        shutil.rmtree(previous, ignore_errors=True)
        if target.is_dir():
            target.rename(previous)
        building.rename(target)
    except BaseException:
        if previous.is_dir() and not target.exists():
            previous.rename(target)
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(previous, ignore_errors=True)
    sync_directory(target.parent)


def read_object(path: Path) -> Record:
    """The JSON object in the file at `path`."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise AdapterError(f"adapter {str(path.parent)!r} lacks `{path.name}`.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{str(path)!r} is not readable as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{str(path)!r} holds a JSON {type(value).__name__}, expected an object.")
    return value


def refuse_other_tensors(directory: Path, sha256: str) -> None:
    """Checks the tensors against their digest in `fedelta.json`.

    Raises:
        AdapterError: the digests differ.
    """
    path = directory / WEIGHTS
    if sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise AdapterError(
            f"{str(path)!r} is not the file that was written with `{SETTINGS}`: its digest differs.",
            hint='copy all files of the adapter again; after a change of your own, set `weights_sha256` to "" in '
            f"`{SETTINGS}`.",
        )


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of the file, in the order of their keys."""
    path = directory / WEIGHTS
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except FileNotFoundError as error:
        pickled = (directory / "adapter_model.bin").exists()
        raise AdapterError(
            f"adapter {str(directory)!r} lacks `{WEIGHTS}`"
            + (", only `adapter_model.bin`: a pickle, which can run code and is never read." if pickled else "."),
            hint="if you trust it, load it with stock PEFT and save it with `save_pretrained` as safetensors."
            if pickled
            else None,
        ) from error
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"{str(path)!r} is damaged: {error}.", hint="copy the adapter again, or write it again."
        ) from error
    if not tensors:
        raise AdapterError(f"{str(path)!r} holds no tensors.")
    if wrong := [key for key, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise AdapterError(f"{str(path)!r} holds tensors that are not floating-point numbers: {listed(wrong, 3)}.")
    return {key: tensors[key] for key in sorted(tensors)}
