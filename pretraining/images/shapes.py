"""Textured shapes: a class is one closed outline with one wave pattern, inside, outside or both.

The outline is a short Fourier series of the radius (Kataoka et al. 2022, radial contours); the pattern is a product of
two plane waves.
"""

import math

import torch

from pretraining.images.splat import random_affine, random_warp
from pretraining.streams import chance, uniform

HARMONICS = 6
OUTLINE = 2 * HARMONICS


def make_classes(num_classes: int, generator: torch.Generator) -> torch.Tensor:
    """One row per class: outline (12 numbers), two wave vectors (4), depth inside and outside (2), base tones (2)."""
    falloff = 1.0 / torch.arange(1, HARMONICS + 1).repeat_interleave(2)
    outline = torch.randn(num_classes, OUTLINE, generator=generator) * 0.35 * falloff.sqrt()
    angle = uniform(generator, 0.0, math.pi, num_classes, 2)
    frequency = torch.exp(uniform(generator, math.log(2.0), math.log(16.0), num_classes, 2))
    waves = torch.stack([torch.cos(angle) * frequency, torch.sin(angle) * frequency], -1).flatten(1)
    depth = uniform(generator, 0.2, 1.0, num_classes, 2) * chance(generator, 0.6, num_classes, 2)
    tones = torch.stack([uniform(generator, 0.5, 1.0, num_classes), uniform(generator, 0.0, 0.4, num_classes)], -1)
    return torch.cat([outline, waves, depth, tones], 1)


def draw(classes_BF: torch.Tensor, generator: torch.Generator, side: int) -> torch.Tensor:
    """One instance of every given class, (B, S, S), ink from 0 to 1."""
    batch = len(classes_BF)
    outline, waves, depth, tones = classes_BF.split([OUTLINE, 4, 2, 2], dim=1)
    outline = outline + torch.randn(outline.shape, generator=generator) * 0.04
    line = (torch.arange(side) + 0.5) * (2.0 / side) - 1.0
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(1, -1, 2).expand(batch, -1, -1)
    shift = uniform(generator, -0.2, 0.2, batch, 1, 2)
    zoom = uniform(generator, 0.45, 0.8, batch, 1)
    place = random_warp(generator, grid + shift, amplitude=0.03)
    place = place @ random_affine(generator, batch, turn=0.4, shear=0.2, stretch=0.2)
    angle, distance = torch.atan2(place[..., 1], place[..., 0]), place.norm(dim=-1)
    orders = torch.arange(1, HARMONICS + 1)
    turns = angle[..., None] * orders
    radius = (torch.cat([torch.cos(turns), torch.sin(turns)], -1) @ outline[:, :, None]).squeeze(-1)
    inside = torch.sigmoid((zoom * torch.exp(0.6 * radius) - distance) * 20.0)
    phase = uniform(generator, 0.0, 2 * math.pi, batch, 1, 2)
    pattern = torch.sin(place @ waves.unflatten(1, (2, 2)).transpose(1, 2) + phase).prod(-1)
    ink: torch.Tensor = inside * (tones[:, :1] + 0.5 * depth[:, :1] * pattern)
    ink = ink + (1 - inside) * (tones[:, 1:] + 0.5 * depth[:, 1:] * pattern)
    return ink.clamp(0, 1).reshape(batch, side, side)
