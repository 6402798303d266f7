"""Pre-trains a backbone from a recipe: `python -m pretraining.pretrain pretraining/vit-micro.toml --out DIR`."""

import argparse
import logging
import time
from pathlib import Path

from pretraining.directory import write_directory
from pretraining.memory import keep_freed_memory
from pretraining.recipe import read_recipe
from pretraining.training import pretrain, source_accuracy


def main() -> None:
    """Trains, or resumes from the checkpoint in DIR, and writes the hub directory into DIR."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, help="TOML file with everything that decides the weights")
    parser.add_argument("--out", type=Path, required=True, help="directory to write; holds the checkpoint meanwhile")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    keep_freed_memory()
    recipe = read_recipe(arguments.recipe)
    checkpoint = arguments.out / "checkpoint.pt"
    began = time.monotonic()
    backbone, head, bank = pretrain(recipe, checkpoint)
    accuracy = source_accuracy(backbone, head, bank, recipe)
    command = f"python -m pretraining.pretrain {arguments.recipe.as_posix()} --out DIR"
    facts = {"train_seconds": round(time.monotonic() - began), "source_accuracy": round(accuracy, 4)}
    write_directory(arguments.out, backbone, recipe, recipe_path=arguments.recipe, command=command, facts=facts)
    checkpoint.unlink(missing_ok=True)
    print(f"{arguments.out}: source accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
