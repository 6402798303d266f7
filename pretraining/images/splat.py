"""Points to pixels: every point is a Gaussian spot of ink, and the spots of a line run together into a stroke.

A Gaussian is separable, so the ink of all points on all pixels is one small matrix product per image. That is about
twenty times cheaper than the distance from every pixel to every segment, and just as smooth at the edges.
"""

import math

import torch

# Shapes: B batch, P points, S side of the image in pixels. Coordinates run from -1 to 1, x to the right, y downwards.

CHUNK = 16


def splat(points_BP2: torch.Tensor, sigma_B: torch.Tensor, side: int) -> torch.Tensor:
    """Sum of one unit-height Gaussian per point at every pixel centre, (B, S, S), each value >= 0."""
    pixels_S = (torch.arange(side) + 0.5) * (2.0 / side) - 1.0
    sharpness_B11 = (-0.5 / sigma_B.square())[:, None, None]
    # In chunks that stay in the processor's cache: the exponentials of a whole batch would not.
    chunks = zip(points_BP2.split(CHUNK), sharpness_B11.split(CHUNK), strict=True)
    return torch.cat([_splat_chunk(points, sharpness, pixels_S) for points, sharpness in chunks])


def _splat_chunk(points_BP2: torch.Tensor, sharpness_B11: torch.Tensor, pixels_S: torch.Tensor) -> torch.Tensor:
    across_BPS = (points_BP2[:, :, :1] - pixels_S).square_().mul_(sharpness_B11).exp_()
    down_BPS = (points_BP2[:, :, 1:] - pixels_S).square_().mul_(sharpness_B11).exp_()
    return down_BPS.transpose(1, 2) @ across_BPS


def fit_box(points_BP2: torch.Tensor, half_extent_B: torch.Tensor) -> torch.Tensor:
    """The points moved and scaled, aspect kept, until the larger side of their box spans +-half_extent."""
    low_B2, high_B2 = points_BP2.amin(1), points_BP2.amax(1)
    centre_B12 = ((low_B2 + high_B2) / 2)[:, None]
    # A floor on the size: a class that collapsed to a dot must not be divided by zero.
    size_B = ((high_B2 - low_B2) / 2).amax(1).clamp_min(1e-3)
    return (points_BP2 - centre_B12) * (half_extent_B / size_B)[:, None, None]


def random_affine(generator: torch.Generator, batch: int, *, turn: float, shear: float, stretch: float) -> torch.Tensor:
    """Random 2x2 matrices (B, 2, 2): rotation within +-turn radians, shear and log-stretch within the given bounds."""
    turn_B, shear_B, stretch_B = (torch.rand(3, batch, generator=generator) * 2 - 1).unbind()
    turn_B, shear_B, stretch_B = turn_B * turn, shear_B * shear, torch.exp(stretch_B * stretch)
    cos_B, sin_B = torch.cos(turn_B), torch.sin(turn_B)
    rotation = torch.stack([torch.stack([cos_B, -sin_B], -1), torch.stack([sin_B, cos_B], -1)], -2)
    zero_B = torch.zeros(batch)
    slant = torch.stack([torch.stack([stretch_B, shear_B], -1), torch.stack([zero_B, 1 / stretch_B], -1)], -2)
    return rotation @ slant


def random_warp(generator: torch.Generator, points_BP2: torch.Tensor, amplitude: float, waves: int = 3) -> torch.Tensor:
    """The points moved by a smooth random field (a few plane waves), as a hand that never draws twice the same."""
    batch = len(points_BP2)
    direction_B2W = torch.randn(batch, 2, waves, generator=generator) * 2.0
    phase_B1W = torch.rand(batch, 1, waves, generator=generator) * (2 * math.pi)
    push_BW2 = torch.randn(batch, waves, 2, generator=generator) * amplitude
    return points_BP2 + torch.sin(points_BP2 @ direction_B2W + phase_B1W) @ push_BW2
