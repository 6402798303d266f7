"""What happens to ink on its way into the network: lost resolution, tone, colour, noise."""

import torch
from torch.nn import functional

from pretraining.streams import chance, uniform


def photograph(
    ink_BSS: torch.Tensor,
    generator: torch.Generator,
    *,
    resolutions: tuple[int, ...],
    low_resolution_fraction: float,
    invert_fraction: float,
    colour_fraction: float,
    noise: float,
) -> torch.Tensor:
    """Images (B, 3, S, S) in the network's range -1..1: ink turned into a foreground and a background colour."""
    batch, side = len(ink_BSS), ink_BSS.shape[-1]
    ink = lose_resolution(ink_BSS, generator, resolutions, low_resolution_fraction)
    dark = uniform(generator, 0.0, 0.3, batch, 1) * chance(generator, 0.5, batch, 1)
    light = dark + (1 - dark) * uniform(generator, 0.5, 1.0, batch, 1)
    inverted = chance(generator, invert_fraction, batch, 1)
    background = torch.where(inverted, light, dark).expand(-1, 3)
    foreground = torch.where(inverted, dark, light).expand(-1, 3)
    coloured = chance(generator, colour_fraction, batch, 1)
    background = torch.where(coloured, torch.rand(batch, 3, generator=generator), background)
    foreground = torch.where(coloured, torch.rand(batch, 3, generator=generator), foreground)
    spread = (foreground - background)[:, :, None, None]
    image = background[:, :, None, None] + spread * ink[:, None]
    grain = torch.randn(batch, 1, side, side, generator=generator)
    strength = uniform(generator, 0.0, noise, batch, 1, 1, 1) * chance(generator, 0.5, batch, 1, 1, 1)
    return ((image + grain * strength).clamp(0, 1) - 0.5) * 2.0


def lose_resolution(
    ink_BSS: torch.Tensor, generator: torch.Generator, resolutions: tuple[int, ...], fraction: float
) -> torch.Tensor:
    """A fraction of the images as if scanned at one of the given sides in pixels and enlarged again."""
    batch, side = len(ink_BSS), ink_BSS.shape[-1]
    operators = torch.stack([torch.eye(side), *(resolution_operator(side, small) for small in resolutions)])
    choice = torch.randint(1, len(operators), (batch,), generator=generator)
    chosen = operators[choice * chance(generator, fraction, batch)]
    return chosen @ ink_BSS @ chosen.transpose(1, 2)


def resolution_operator(side: int, small: int) -> torch.Tensor:
    """The (S, S) matrix that averages S pixels down to `small` and interpolates them linearly up again."""
    identity = torch.eye(side)[None]
    shrunk = functional.adaptive_avg_pool1d(identity, small)
    # Rows of the identity are the unit vectors: transforming each gives the columns of the operator.
    return functional.interpolate(shrunk, side, mode="linear", align_corners=False)[0].T.contiguous()
