"""Drawn strokes: a class is one random set of strokes, an instance is one more drawing of it by an unsteady hand.

A stroke is a chain of arcs (heading and curvature are random) or a spline through random control points. Nothing is
copied from a script: no digit, letter or font enters, only random numbers.
"""

import math

import torch

from pretraining.images.splat import fit_box, random_affine, random_warp, splat
from pretraining.streams import chance, uniform

POINTS = 128
MAX_STROKES = 3
DENSE = 48


def make_classes(num_classes: int, generator: torch.Generator) -> torch.Tensor:
    """One row per class, (C, POINTS, 3): x, y and the stroke's number, points at equal distances along the strokes."""
    return torch.stack([_drawing(generator) for _ in range(num_classes)])


def draw(classes_BP3: torch.Tensor, generator: torch.Generator, side: int) -> torch.Tensor:
    """One instance of every given class, (B, S, S), ink from 0 to 1."""
    batch = len(classes_BP3)
    points, stroke_BP = classes_BP3[..., :2], classes_BP3[..., 2].long()
    offsets = torch.randn(batch, MAX_STROKES, 2, generator=generator) * 0.06
    points = points + offsets.gather(1, stroke_BP[..., None].expand(-1, -1, 2))
    points = random_warp(generator, points, amplitude=0.06)
    points = points @ random_affine(generator, batch, turn=0.3, shear=0.35, stretch=0.25)
    # Thickness relative to the image: from a hair line to the felt pen that an 8 by 8 scan makes of a pencil.
    sigma_B = torch.exp(uniform(generator, math.log(0.05), math.log(0.18), batch))
    half_extent_B = uniform(generator, 0.6, 1.05, batch) - sigma_B
    points = fit_box(points, half_extent_B)
    room_B1 = (1.0 - half_extent_B - sigma_B).clamp_min(0.05)[:, None]
    points = points + ((torch.rand(batch, 2, generator=generator) * 2 - 1) * room_B1)[:, None]
    hardness_B = torch.exp(uniform(generator, math.log(1.5), math.log(6.0), batch))
    return _ink(points, stroke_BP, sigma_B, hardness_B, side)


def _ink(
    points: torch.Tensor, stroke_BP: torch.Tensor, sigma_B: torch.Tensor, hardness_B: torch.Tensor, side: int
) -> torch.Tensor:
    """Ink that is one half at distance sigma from the line and falls off the faster the harder the pen."""
    steps_BP = (points[:, 1:] - points[:, :-1]).norm(dim=-1) * (stroke_BP[:, 1:] == stroke_BP[:, :-1])
    spacing_B = steps_BP.mean(1).clamp_min(1e-3)
    # On a long straight line the spots add up to sigma * sqrt(2 pi) / spacing times exp(-d^2 / 2 sigma^2).
    height_B = spacing_B / (sigma_B * math.sqrt(2 * math.pi))
    coverage = splat(points, sigma_B, side) * height_B[:, None, None]
    return torch.sigmoid(hardness_B[:, None, None] * (torch.log(coverage.clamp_min(1e-6)) + 0.5) * 2.0)


def _drawing(generator: torch.Generator) -> torch.Tensor:
    num_strokes = int(torch.multinomial(torch.tensor([0.45, 0.4, 0.15]), 1, generator=generator)) + 1
    strokes: list[torch.Tensor] = []
    for _ in range(num_strokes):
        stroke = _arcs(generator) if chance(generator, 0.65) else _spline(generator)
        if strokes and chance(generator, 0.65):
            # Most strokes of a drawing touch: this one begins somewhere on an earlier one.
            earlier = torch.cat(strokes)
            touch = int(torch.randint(len(earlier), (), generator=generator))
            stroke = stroke - stroke[0] + earlier[touch]
        strokes.append(stroke)
    return _resample(strokes)


def _arcs(generator: torch.Generator) -> torch.Tensor:
    """A chain of one to four arcs and straight pieces, smooth or with a corner where two meet, (N, 2)."""
    pieces = int(torch.randint(1, 5, (), generator=generator))
    length = uniform(generator, 0.4, 1.6, pieces)
    bend = uniform(generator, -1.6 * math.pi, 1.6 * math.pi, pieces) * chance(generator, 0.7, pieces)
    corner = uniform(generator, -math.pi, math.pi, pieces) * chance(generator, 0.4, pieces)
    corner[0] = uniform(generator, -math.pi, math.pi)
    heading = torch.cumsum(corner + torch.cat([torch.zeros(1), bend[:-1]]), 0)
    along = (torch.arange(DENSE) + 0.5) / DENSE
    angle = (heading[:, None] + bend[:, None] * along).flatten()
    step = (length[:, None] / DENSE).expand(-1, DENSE).flatten()
    moves = torch.stack([torch.cos(angle) * step, torch.sin(angle) * step], -1)
    start = uniform(generator, -0.7, 0.7, 1, 2)
    return torch.cat([start, start + torch.cumsum(moves, 0)])


def _spline(generator: torch.Generator) -> torch.Tensor:
    """A Catmull-Rom spline, or a polyline, through three to six random control points, sometimes closed, (N, 2)."""
    knots = uniform(generator, -1.0, 1.0, int(torch.randint(2, 7, (), generator=generator)), 2)
    if chance(generator, 0.2):
        knots = torch.cat([knots, knots[:1]])
    tension = 0.0 if chance(generator, 0.3) else 0.5
    padded = torch.cat([knots[:1], knots, knots[-1:]])
    t = (torch.arange(DENSE) / DENSE)[None, :, None]
    p0, p1, p2, p3 = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    m1, m2 = tension * (p2 - p0), tension * (p3 - p1)
    if tension == 0.0:
        return torch.cat([(p1 + t * (p2 - p1)).flatten(0, 1), knots[-1:]])
    curve = (2 * t**3 - 3 * t**2 + 1) * p1 + (t**3 - 2 * t**2 + t) * m1
    curve = curve + (-2 * t**3 + 3 * t**2) * p2 + (t**3 - t**2) * m2
    return torch.cat([curve.flatten(0, 1), knots[-1:]])


def _resample(strokes: list[torch.Tensor]) -> torch.Tensor:
    """POINTS points shared out among the strokes by length, evenly spaced on each, in the box from -1 to 1, (P, 3)."""
    everything = torch.cat(strokes)
    low, high = everything.amin(0), everything.amax(0)
    strokes = [(stroke - (low + high) / 2) / ((high - low).amax() / 2).clamp_min(1e-3) for stroke in strokes]
    lengths = torch.stack([(stroke[1:] - stroke[:-1]).norm(dim=-1).sum() for stroke in strokes])
    shares = (lengths / lengths.sum() * (POINTS - 4 * len(strokes))).long() + 4
    shares[int(shares.argmax())] += POINTS - int(shares.sum())
    rows = [
        torch.cat([_evenly(stroke, int(share)), torch.full((int(share), 1), float(number))], 1)
        for number, (stroke, share) in enumerate(zip(strokes, shares, strict=True))
    ]
    return torch.cat(rows)


def _evenly(stroke: torch.Tensor, num_points: int) -> torch.Tensor:
    travelled = torch.cat([torch.zeros(1), torch.cumsum((stroke[1:] - stroke[:-1]).norm(dim=-1), 0)])
    targets = torch.linspace(0, 1, num_points) * travelled[-1]
    right = torch.searchsorted(travelled, targets).clamp(1, len(travelled) - 1)
    gap = (travelled[right] - travelled[right - 1]).clamp_min(1e-9)
    part = ((targets - travelled[right - 1]) / gap)[:, None]
    return stroke[right - 1] + part * (stroke[right] - stroke[right - 1])
