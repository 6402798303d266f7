"""Measures what a bundled backbone is worth and writes it into its provenance and card.

`python -m pretraining.measure DIR` probes digits; `--cifar100 PATH` adds CIFAR-100, `--demo` the demo recipe itself.
Every figure stands beside the same figure of a random network of the same architecture and the command that gave it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from fedelta.models.native import register_networks
from pretraining.card import write_card
from pretraining.directory import write_json
from pretraining.memory import keep_freed_memory
from pretraining.networks import build_backbone
from pretraining.probes import cifar100, digits, features_of, few_shot_accuracy, mean, probe_accuracy
from pretraining.recipe import Recipe

SHOTS, DRAWS = 5, 20
RANDOM_SEEDS = (101, 102, 103)
DEMO_RECIPE = Path("recipes/demo.toml")
DEMO_SEEDS = (7, 8, 9)

Measure = dict[str, Any]  # Any: figures, seeds and a command, as JSON holds them


def main() -> None:
    """Measures what the options ask for and keeps what was measured before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="a bundled backbone, with its provenance.json")
    parser.add_argument("--cifar100", type=Path, metavar="PATH", help="directory of train.parquet and test.parquet")
    parser.add_argument(
        "--demo",
        type=Path,
        metavar="RECIPE",
        nargs="?",
        const=DEMO_RECIPE,
        help=f"run a recipe over several seeds instead; {DEMO_RECIPE} when none is named",
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    command = " ".join(["python -m pretraining.measure", *sys.argv[1:]])
    if arguments.demo is None:
        result = measure_probes(arguments.directory, arguments.cifar100)
    else:
        result = measure_demo(arguments.directory, arguments.demo)
    # Read only now: the demo takes minutes, and another measurement may have been written meanwhile.
    provenance = _provenance(arguments.directory)
    provenance["measures"] |= {name: measure | {"command": command} for name, measure in result.items()}
    write_json(arguments.directory / "provenance.json", provenance)
    write_card(arguments.directory)
    print(json.dumps(provenance["measures"], indent=2))


def measure_probes(directory: Path, cifar100_path: Path | None) -> dict[str, Measure]:
    """The linear probes, by name."""
    recipe = Recipe.model_validate(_provenance(directory)["resolved_recipe"])
    torch.set_num_threads(recipe.training.threads)
    backbones = _backbones(directory, recipe)
    measures = {"digits_5_shot_probe": measure_digits(backbones, recipe)}
    if cifar100_path is not None:
        measures["cifar100_probe"] = measure_cifar100(backbones, recipe, cifar100_path)
    return measures


def measure_digits(backbones: list[PreTrainedModel], recipe: Recipe) -> Measure:
    """A probe on five labelled digits per class; the first backbone is the pre-trained one."""
    images, labels = digits()
    scores = [
        few_shot_accuracy(features_of(backbone, images, recipe.images.side), labels, shots=SHOTS, draws=DRAWS)
        for backbone in backbones
    ]
    return _beside(scores) | {"shots": SHOTS, "draws": DRAWS}


def measure_cifar100(backbones: list[PreTrainedModel], recipe: Recipe, directory: Path) -> Measure:
    """A probe on all training images; one random network is enough, with 25,000 images it hardly varies."""
    (train, train_labels), (test, test_labels) = cifar100(directory, "train"), cifar100(directory, "test")
    side, scores = recipe.images.side, []
    for backbone in backbones[:2]:
        shown = (features_of(backbone, train, side), train_labels)
        scores.append(probe_accuracy(shown, (features_of(backbone, test, side), test_labels)))
    return _beside(scores) | {"num_train": len(train), "num_test": len(test)}


def measure_demo(directory: Path, recipe: Path) -> dict[str, Measure]:
    """Final test accuracy of a recipe through the command line of fedelta, seed by seed."""
    source = f"model.source={directory.as_posix()}"
    pretrained = [_demo_run(recipe, source, f"seed={seed}") for seed in DEMO_SEEDS]
    random = [_demo_run(recipe, source, f"seed={seed}", "model.pretrained=false") for seed in DEMO_SEEDS]
    measure = {
        "pretrained": mean([run["final_accuracy"] for run in pretrained]),
        "random": mean([run["final_accuracy"] for run in random]),
        "seeds": list(DEMO_SEEDS),
        "pretrained_by_seed": [round(run["final_accuracy"], 4) for run in pretrained],
        "random_by_seed": [round(run["final_accuracy"], 4) for run in random],
        "recipe": recipe.as_posix(),
        "num_rounds": pretrained[0]["rounds"],
        "tuned_fraction": round(pretrained[0]["tuned_parameters"] / pretrained[0]["total_parameters"], 4),
    }
    return {"demo": measure}


def _demo_run(recipe: Path, *overrides: str) -> dict[str, Any]:  # Any: what fedelta writes into summary.json
    options = [part for override in overrides for part in ("--set", override)]
    fedelta = Path(sys.executable).with_name("fedelta")
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        subprocess.run([fedelta, "run", recipe, *options, "--out", out, "--quiet"], check=True)
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return summary


def _provenance(directory: Path) -> dict[str, Any]:  # Any: JSON
    provenance: dict[str, Any] = json.loads((directory / "provenance.json").read_text(encoding="utf-8"))
    return provenance


def _backbones(directory: Path, recipe: Recipe) -> list[PreTrainedModel]:
    """The pre-trained network, then random ones of its architecture, in float32."""
    register_networks()
    classifier = AutoModelForImageClassification.from_pretrained(directory, dtype=torch.float32)
    return [classifier.base_model, *(build_backbone(recipe.network, seed) for seed in RANDOM_SEEDS)]


def _beside(scores: list[float]) -> Measure:
    """The first score beside the mean of the others."""
    return {"pretrained": round(scores[0], 4), "random": mean(scores[1:])}


if __name__ == "__main__":
    main()
