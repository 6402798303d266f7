"""Fractals: a class is one random iterated function system, an instance is a jitter of its maps and of its pose.

Source: Kataoka et al. 2020, "Pre-training without natural images" (FractalDB); drawn here as soft spots of ink.
"""

import math

import torch

from pretraining.images.splat import fit_box, random_affine, splat
from pretraining.streams import uniform

MAPS = 4
POINTS = 384
ITERATIONS = 10


def make_classes(num_classes: int, generator: torch.Generator) -> torch.Tensor:
    """One row per class, (C, MAPS, 7): the six numbers of every affine map, then its probability.

    Every map is a rotation times two shrinking factors times a rotation, so that all systems converge.
    """
    shape = (num_classes, MAPS)
    first, second = uniform(generator, -math.pi, math.pi, 2, *shape).unbind()
    large, small = uniform(generator, 0.35, 0.8, *shape), uniform(generator, 0.1, 0.6, *shape)
    cos1, sin1, cos2, sin2 = torch.cos(first), torch.sin(first), torch.cos(second), torch.sin(second)
    a = cos1 * large * cos2 - sin1 * small * sin2
    b = -cos1 * large * sin2 - sin1 * small * cos2
    c = sin1 * large * cos2 + cos1 * small * sin2
    d = -sin1 * large * sin2 + cos1 * small * cos2
    shift = uniform(generator, -1.0, 1.0, 2, *shape)
    # Larger maps are drawn more often, as in FractalDB; systems of two or three maps have zero probabilities.
    probability = (a * d - b * c).abs() + 0.05
    num_maps = torch.randint(2, MAPS + 1, (num_classes, 1), generator=generator)
    probability = probability * (torch.arange(MAPS) < num_maps)
    return torch.stack([a, b, c, d, shift[0], shift[1], probability / probability.sum(1, keepdim=True)], -1)


def draw(classes_BM7: torch.Tensor, generator: torch.Generator, side: int) -> torch.Tensor:
    """One instance of every given class, (B, S, S), ink from 0 to 1."""
    batch = len(classes_BM7)
    maps = classes_BM7[..., :6] * (1 + torch.randn(batch, MAPS, 6, generator=generator) * 0.05)
    points = torch.zeros(batch, POINTS, 2)
    for _ in range(ITERATIONS):
        choice = torch.multinomial(classes_BM7[..., 6], POINTS, replacement=True, generator=generator)
        chosen = maps.gather(1, choice[..., None].expand(-1, -1, 6))
        linear = chosen[..., :4].unflatten(-1, (2, 2))
        points = (linear @ points[..., None]).squeeze(-1) + chosen[..., 4:]
    points = points @ random_affine(generator, batch, turn=0.4, shear=0.2, stretch=0.2)
    points = fit_box(points, uniform(generator, 0.7, 1.1, batch))
    sigma_B = torch.exp(uniform(generator, math.log(0.03), math.log(0.08), batch))
    density = splat(points, sigma_B, side)
    level_B11 = density.mean((1, 2), keepdim=True) * uniform(generator, 0.3, 1.5, batch, 1, 1)
    return density / (density + level_B11)
