"""Random crops and flips of training images: section `[augmentation]`, off by default.

Every client has one random stream per round, or one per epoch if rounds are measured in steps. At the start of each
epoch it draws one line of uniform numbers for each of its rows, in the order of the rows. So the change to an image
depends only on seed, round, client, epoch and row, not on the batches or on other clients in the lanes.

The images are the model's inputs, already resized and normalised. Crops and flips only move pixels, and the weights of
a resized crop sum to 1, so the result is the same as for the raw image.

Sources: padded crop and flip as in He et al. 2016, section 4.2; random resized crop as in Szegedy et al. 2015,
section 6.

Shapes: N rows, B rows of a batch, C channels, S side of the square image, D uniform numbers of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from fedelta.errors import ConfigError
from fedelta.modalities.base import Inputs
from fedelta.seeds import stream
from fedelta.settings import Settings

_PIXELS = "pixel_values"
_MIN_ASPECT, _MAX_ASPECT = 3 / 4, 4 / 3  # Szegedy et al. 2015
_NUM_TRIES = 10  # torchvision's RandomResizedCrop; if no box fits, the whole image is used

# Columns of a row's uniform numbers. All are always drawn, so that switching one change on does not alter the others.
_FLIP, _CROP, _PLACE, _BOXES = 0, slice(1, 3), slice(3, 5), slice(5, 5 + 2 * _NUM_TRIES)
_NUM_DRAWS = _BOXES.stop


class Augmentation(Settings):
    """Random changes to training images: section `[augmentation]`. Test images are not changed.

    Args:
        crop_padding: width in pixels of a black border, from which a square of the original size is cut at random.
        flip: whether to mirror the image left to right with probability 1/2.
        resized_crop: smallest share of the image's area for a random box that is resized to the full size; the largest
            share is 1, and the aspect ratio lies between 3/4 and 4/3. None: no such crop. Applied before the padding.
    """

    crop_padding: int = Field(default=0, ge=0)  # FedPEFT and FedLAMA have 4
    flip: bool = False  # FedPEFT and FedLAMA have it
    resized_crop: float | None = Field(default=None, gt=0, le=1)  # Accumulator has 0.05

    @property
    def is_on(self) -> bool:
        """Whether any change is switched on."""
        return self.crop_padding > 0 or self.flip or self.resized_crop is not None

    def __call__(self, pixels_BCSS: Tensor, uniforms_BD: Tensor, black_C: Tensor) -> Tensor:
        """The images, each changed according to its uniform numbers.

        Args:
            pixels_BCSS: images; not modified.
            uniforms_BD: numbers in [0, 1), one line per image, as drawn by `AugmentedInputs`.
            black_C: value of a black pixel in each channel.
        """
        if self.resized_crop is not None:
            boxes_B4 = draw_boxes(uniforms_BD, self.resized_crop, pixels_BCSS.shape[-1])
            pixels_BCSS = resize_boxes(pixels_BCSS, boxes_B4)
        if self.crop_padding:
            starts_B2 = (uniforms_BD[:, _CROP] * (2 * self.crop_padding + 1)).long()
            pixels_BCSS = crop_padded(pixels_BCSS, starts_B2, self.crop_padding, black_C)
        if self.flip:
            flipped_B = uniforms_BD[:, _FLIP] < 0.5
            pixels_BCSS = torch.where(flipped_B.view(-1, 1, 1, 1), pixels_BCSS.flip(-1), pixels_BCSS)
        return pixels_BCSS


class AugmentedInputs:
    """Training images with random changes that differ in every epoch; keeps 100 bytes per row.

    Args:
        inputs: the unchanged rows.
        augmentation: the changes.
        black: value of a black pixel, one per channel or one for all.
        device: where the changes are computed.

    Raises:
        ConfigError: the rows are not square images, or the padding is too large for them.
    """

    def __init__(
        self, inputs: Inputs, augmentation: Augmentation, black: tuple[float, ...], device: torch.device
    ) -> None:
        check_images(inputs.fetch(torch.arange(1)), augmentation)
        self._inputs = inputs
        self._augmentation = augmentation
        self._black_C = torch.tensor(black, device=device)
        self._uniforms_ND = torch.full((len(inputs), _NUM_DRAWS), torch.nan)

    def __len__(self) -> int:
        return len(self._inputs)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The images of `rows` (int64, one axis), changed for the current epoch of their client."""
        tensors = self._inputs.fetch(rows)
        pixels, uniforms = (tensor.to(self._black_C.device) for tensor in (tensors[_PIXELS], self._uniforms_ND[rows]))
        return {**tensors, _PIXELS: self._augmentation(pixels, uniforms, self._black_C)}

    def in_epochs(
        self,
        batches: Iterator[Tensor],
        rows: Tensor,
        epoch_steps: int,
        generators: Iterator[Generator] | None,
        skip: int = 0,
    ) -> Iterator[Tensor]:
        """Yields the batches of a client, and draws new numbers for its `rows` before each epoch.

        Args:
            batches: of the client, in order; each must be fetched before the next is requested.
            rows: all rows of the client, which no other client has.
            epoch_steps: batches per epoch.
            generators: of this client, one per epoch.
            skip: batches of the first epoch that `batches` leaves out.

        Raises:
            ValueError: there are no generators; torch would use its global one.
        """
        if generators is None:
            raise ValueError("the job has no `augmentation` generators, but the engine augments")
        for step, batch in enumerate(batches, start=skip):
            if step == skip or step % epoch_steps == 0:
                self._uniforms_ND[rows] = torch.rand(len(rows), _NUM_DRAWS, generator=next(generators))
            yield batch

    def in_samples(self, samples: Iterator[Tensor], generators: Iterator[Generator] | None) -> Iterator[Tensor]:
        """Yields Poisson samples of a client's rows, each with new numbers that depend on no other row.

        Args:
            samples: of the client, in order; each must be fetched before the next is requested.
            generators: of this client, one per sample.

        Raises:
            ValueError: there are no generators.
        """
        if generators is None:
            raise ValueError("the job has no `augmentation` generators, but the engine augments")
        for sample in samples:
            seed = int(torch.randint(2**62, (), generator=next(generators)))
            for row in sample.tolist():
                self._uniforms_ND[row] = torch.rand(_NUM_DRAWS, generator=stream(seed, row))
            yield sample


def crop_padded(pixels_BCSS: Tensor, starts_B2: Tensor, padding: int, black_C: Tensor) -> Tensor:
    """Squares of the original size, cut from images with `padding` black pixels on every side.

    Args:
        pixels_BCSS: images.
        starts_B2: first row and first column of each square in the padded image, int64 in 0..2 `padding`.
        padding: pixels.
        black_C: value of a black pixel in each channel.
    """
    batch, channels, size, _ = pixels_BCSS.shape
    side = size + 2 * padding
    padded = black_C.to(pixels_BCSS).view(-1, 1, 1).expand(batch, channels, side, side).clone()
    padded[:, :, padding:-padding, padding:-padding] = pixels_BCSS
    places_S = torch.arange(size, device=starts_B2.device)
    rows_BS, columns_BS = (starts_B2[:, axis, None] + places_S for axis in (0, 1))
    cut = padded.gather(2, rows_BS.view(batch, 1, size, 1).expand(-1, channels, -1, side))
    return cut.gather(3, columns_BS.view(batch, 1, 1, size).expand(-1, channels, size, -1))


def draw_boxes(uniforms_BD: Tensor, min_area: float, size: int) -> Tensor:
    """Random boxes in a square: area and aspect ratio are drawn first, then a position where the box fits.

    Args:
        uniforms_BD: numbers in [0, 1).
        min_area: smallest share of the square's area.
        size: side of the square in pixels.

    Returns:
        int64 of shape [B, 4]: first row, first column, height, width.

    Source: Szegedy et al. 2015, section 6; ten tries and rounding to whole pixels as in torchvision. If none of ten
    boxes fits, the box is the whole square.
    """
    tries_BT2 = uniforms_BD[:, _BOXES].reshape(-1, _NUM_TRIES, 2)
    areas_BT = size**2 * (min_area + (1 - min_area) * tries_BT2[..., 0])
    low, high = math.log(_MIN_ASPECT), math.log(_MAX_ASPECT)
    aspects_BT = (low + (high - low) * tries_BT2[..., 1]).exp()
    # Rows before columns: the height is the root of area over aspect, which is width over height.
    sides_BT2 = torch.stack([(areas_BT / aspects_BT).sqrt(), (areas_BT * aspects_BT).sqrt()], -1).round().long()
    sides_BT2 = sides_BT2.clamp(min=1)
    fits_BT = (sides_BT2 <= size).all(-1)
    first_B = fits_BT.int().max(1).indices  # the first of the boxes that fit
    chosen_B2 = sides_BT2[torch.arange(len(first_B), device=first_B.device), first_B]
    sides_B2 = torch.where(fits_BT.any(1, keepdim=True), chosen_B2, size)
    starts_B2 = (uniforms_BD[:, _PLACE] * (size - sides_B2 + 1)).long()
    return torch.cat([starts_B2, sides_B2], 1)


def resize_boxes(pixels_BCSS: Tensor, boxes_B4: Tensor) -> Tensor:
    """One box of each image, resized to the full image size, bilinear.

    Args:
        pixels_BCSS: images.
        boxes_B4: first row, first column, height, width in pixels.
    """
    size = pixels_BCSS.shape[-1]
    starts_B2, sides_B2 = boxes_B4[:, None, :2], boxes_B4[:, None, 2:]
    centres_S1 = (torch.arange(size, device=boxes_B4.device).view(-1, 1) + 0.5) / size
    # Pixel coordinates are clamped to the box, so that pixels outside it do not contribute.
    inside_BS2 = (centres_S1 * sides_B2 - 0.5).clamp(min=0).minimum(sides_B2 - 1)
    # grid_sample counts from -1, the left edge of the first pixel, to 1, the right edge of the last.
    rows_BS, columns_BS = ((2 * (starts_B2 + inside_BS2) + 1) / size - 1).to(pixels_BCSS).unbind(-1)
    grid_BSS2 = torch.stack([columns_BS[:, None, :].expand(-1, size, -1), rows_BS[:, :, None].expand(-1, -1, size)], -1)
    return grid_sample(pixels_BCSS, grid_BSS2, mode="bilinear", padding_mode="border", align_corners=False)


def check_images(sample: dict[str, Tensor], augmentation: Augmentation) -> None:
    """Refuses inputs that `augmentation` cannot be applied to.

    Raises:
        ConfigError: they are not square images, or the padding is too large for them.
    """
    pixels, problem = sample.get(_PIXELS), None
    if pixels is None:
        problem = f"`[augmentation]` changes `{_PIXELS}`, but the training data have {', '.join(sorted(sample))}"
        raise ConfigError([problem], hint="augmentation is for images only; remove the section.")
    shape, padding = tuple(pixels.shape), augmentation.crop_padding
    if len(shape) != 4 or shape[-1] != shape[-2]:
        problem = f"`[augmentation]` needs `{_PIXELS}` of shape (rows, channels, side, side), but found {shape}"
    elif padding >= shape[-1]:
        problem = (
            f"`augmentation.crop_padding` is {padding}, expected less than the side of an image, {shape[-1]} pixels"
        )
    if problem is not None:
        raise ConfigError([problem])
