"""The model card of a bundled backbone, written from its provenance so that the two cannot disagree."""

import json
from pathlib import Path
from typing import Any

from pretraining.storage import write_atomically

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
tags: [formula-driven-supervised-learning, {kind}]
---

# {name}

A small {kind} ({num_parameters:,} parameters, {side} x {side} pixels, float16) pre-trained by the fedelta project
itself, from nothing but formulas: no photograph, no digit, no letter and no other data set took part.

## How it was made

`{command}`

{num_classes:,} classes ({sources}). A class is one random formula: a set of strokes, an iterated function system or
a textured outline. An instance is a jitter of it: affine maps, a smooth warp, pen thickness, lost resolution, inverted
contrast, colour, noise. A random drawing can look like a digit by chance; none was put there.
Training is plain classification of the formulas ({steps:,} steps of {batch_size} fresh images), the idea of Kataoka et
al. 2020 (Pre-training without natural images) and Nakashima et al. 2022 (Can vision transformers learn without natural
images?). On held-out instances {source_accuracy:.1%} get their own class of {num_classes:,}; chance is {chance:.2%}.

The seed, the resolved recipe, versions and the checksum are in `provenance.json`. The same seed gives the same bits on
the same machine with the same number of threads; another processor rounds differently.

## What it is worth

{measures}

## Use

{register}`AutoModelForImageClassification.from_pretrained(directory, num_labels=10)`; the head is zero, tune it.
Grey images go in as three equal channels. It is meant for demonstrations and tests of fine-tuning on small drawings,
not for photographs.
"""


def write_card(directory: Path) -> None:
    """Writes README.md from provenance.json, both in `directory`."""
    provenance = json.loads((directory / "provenance.json").read_text(encoding="utf-8"))
    recipe = provenance["resolved_recipe"]
    images, training = recipe["images"], recipe["training"]
    num_classes = sum(source["num_classes"] for source in images["sources"])
    text = CARD.format(
        name=provenance["name"],
        kind=recipe["network"]["model_type"].removeprefix("fedelta_"),
        register="" if recipe["network"]["model_type"] == "vit" else "After `fedelta.register_networks()`:\n",
        num_parameters=provenance["num_parameters"],
        side=images["side"],
        command=provenance["command"],
        num_classes=num_classes,
        sources=", ".join(f"{source['num_classes']:,} of {source['formula']}" for source in images["sources"]),
        steps=training["steps"],
        batch_size=training["batch_size"],
        source_accuracy=provenance["source_accuracy"],
        chance=1 / num_classes,
        measures=_table(provenance["measures"]),
    )
    write_atomically(directory / "README.md", lambda file: file.write_text(text, encoding="utf-8"))


def _table(measures: dict[str, Any]) -> str:  # Any: the figures of a measure
    """One row per figure, with the command that measures it."""
    if not measures:
        return "Not measured yet: `python -m pretraining.measure DIR`."
    rows = ["| measure | pre-trained | random | command |", "|---|---|---|---|"]
    for name, measure in measures.items():
        rows.append(f"| {name} | {measure['pretrained']:.1%} | {measure['random']:.1%} | `{measure['command']}` |")
    return "\n".join(rows)
