"""A backbone as a directory in the form of the Hugging Face hub, with its provenance and its card beside it.

The head of the source classes is not kept: its classes mean nothing to anyone. `AutoModelForImageClassification`
finds a head of zeros instead, so that it loads without a warning and a tuned head starts from nothing.
"""

import copy
import datetime
import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification, PreTrainedModel

from fedelta.models.native import register_networks
from pretraining.card import write_card
from pretraining.networks import head_name
from pretraining.recipe import Recipe
from pretraining.storage import write_atomically

NUM_LABELS = 10


def write_directory(
    out: Path,
    backbone: PreTrainedModel,
    recipe: Recipe,
    *,
    recipe_path: Path,
    command: str,
    facts: Mapping[str, float],
) -> None:
    """Writes config.json, model.safetensors, preprocessor_config.json, provenance.json and README.md, each whole."""
    classifier = _classifier(backbone)
    tensors = {
        name: value.half() if value.is_floating_point() else value for name, value in classifier.state_dict().items()
    }
    weights = out / "model.safetensors"
    write_atomically(weights, lambda file: save_file(tensors, file, metadata={"format": "pt"}))
    # The temporary file of safetensors is private to its owner; a package's data file is for everyone.
    weights.chmod(0o644)
    write_json(out / "config.json", _config(classifier, recipe))
    write_json(out / "preprocessor_config.json", _preprocessor(recipe.images.side))
    provenance = {
        "name": recipe.name,
        "recipe": recipe_path.as_posix(),
        "command": command,
        "resolved_recipe": recipe.model_dump(),
        "seed": recipe.seed,
        "steps": recipe.training.steps,
        "threads": recipe.training.threads,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        **facts,
        "num_parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "sha256": sha256_of(weights),
        "measures": {},
    }
    write_json(out / "provenance.json", provenance)
    write_card(out)


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON, whole or not at all."""
    text = json.dumps(value, indent=2, sort_keys=False) + "\n"
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _classifier(backbone: PreTrainedModel) -> PreTrainedModel:
    """The classifier of the same family around the backbone, its head zero."""
    register_networks()
    config = copy.deepcopy(backbone.config)
    config.num_labels = NUM_LABELS
    # The fork keeps the caller's random state: what transformers draws here is overwritten below.
    with torch.random.fork_rng(devices=[]):
        classifier: PreTrainedModel = AutoModelForImageClassification.from_config(config)
    head = head_name(classifier)
    base = classifier.base_model
    # A network that is its own base model has a head, whose classes mean nothing; its place is zeroed below.
    heads = {name: value for name, value in base.state_dict().items() if name.startswith(f"{head}.")}
    base.load_state_dict(backbone.state_dict() | heads)
    for parameter in classifier.get_submodule(head).parameters():
        torch.nn.init.zeros_(parameter)
    return classifier


def _config(classifier: PreTrainedModel, recipe: Recipe) -> dict[str, object]:
    """The recipe's own fields.

    Label names are left out, or every other number of labels would draw a warning; the number type too, which the
    weights tell anyway: a network made from the configuration alone must be float32, or its training overflows.
    """
    return {
        "architectures": [type(classifier).__name__],
        "model_type": recipe.network.model_type,
        **recipe.network.settings,
        "num_labels": NUM_LABELS,
        "transformers_version": transformers.__version__,
    }


def _preprocessor(side: int) -> dict[str, object]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
