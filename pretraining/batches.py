"""Training batches: a batch is a function of the seed and its number, so nothing is stored and a run can resume."""

from dataclasses import dataclass

import torch

from pretraining.images import fractals, shapes, strokes
from pretraining.images.camera import photograph
from pretraining.recipe import Images
from pretraining.streams import stream

FORMULAS = {"strokes": strokes, "fractals": fractals, "shapes": shapes}


@dataclass(frozen=True)
class ClassBank:
    """The formulas of all classes: one table per source, in the recipe's order."""

    images: Images
    seed: int
    tables: tuple[torch.Tensor, ...]


def make_bank(images: Images, seed: int) -> ClassBank:
    """Draws the formulas of all classes."""
    tables = tuple(
        FORMULAS[source.formula].make_classes(source.num_classes, stream(seed, "classes", source.formula))
        for source in images.sources
    )
    return ClassBank(images, seed, tables)


def draw_batch(bank: ClassBank, batch_size: int, purpose: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, S, S) in -1..1 and labels (B,), sorted by source; `purpose` keeps held-out draws apart."""
    generator = stream(bank.seed, purpose, number)
    inks, labels, first_label = [], [], 0
    for source, table, count in zip(bank.images.sources, bank.tables, share_out(bank.images, batch_size), strict=True):
        chosen = torch.randint(len(table), (count,), generator=generator)
        inks.append(FORMULAS[source.formula].draw(table[chosen], generator, bank.images.side))
        labels.append(chosen + first_label)
        first_label += len(table)
    camera = bank.images.camera
    pictures = photograph(
        torch.cat(inks),
        generator,
        resolutions=tuple(camera.resolutions),
        low_resolution_fraction=camera.low_resolution_fraction,
        invert_fraction=camera.invert_fraction,
        colour_fraction=camera.colour_fraction,
        noise=camera.noise,
    )
    return pictures, torch.cat(labels)


def share_out(images: Images, batch_size: int) -> list[int]:
    """How many images of a batch each source gives; the first source takes what rounding leaves."""
    total = sum(source.share for source in images.sources)
    counts = [int(batch_size * source.share / total) for source in images.sources]
    counts[0] += batch_size - sum(counts)
    return counts
