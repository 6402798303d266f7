"""Contracts of codecs, tried on tensors of every rank and on invalid bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedelta.codecs.base import Codec, most_bytes
from fedelta.errors import PayloadError
from fedelta.params import is_finite, norm
from fedelta.seeds import stream
from fedelta.testing.contract import (
    BreachError,
    no_global_draws,
    require,
    reread,
    same_bits,
)

_SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (7,), (3, 5), (5, 3, 2), (4, 3, 2, 2), (0,), (2, 0), (0, 3))
# Largest error relative to the norm of a tensor, without error feedback. bfloat16 loses 2^-9 of each number.
_MOST_LOST = 2**-7
_NAME = "layer.weight"


@dataclass(frozen=True)
class CodecTrial:
    """A codec and the tensors that it is tried on.

    Args:
        codec: the codec to test.
    """

    codec: Codec

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Normal numbers of the magnitude of deltas, in every shape."""
        return [1e-2 * torch.randn(shape, generator=stream(0, "numbers", *shape)) for shape in _SHAPES]

    def packed(self, tensor: Tensor, seed: int = 0) -> bytes:
        """A copy of the bytes that `pack` returns."""
        return bytes(self.codec.pack(_NAME, tensor, seed))

    def unpacked(self, data: bytes, shape: tuple[int, ...]) -> Tensor:
        """The result of `unpack`."""
        return self.codec.unpack(_NAME, memoryview(data), shape)

    def decoded(self, tensor: Tensor) -> Tensor:
        """The tensor after `pack` and `unpack`."""
        return self.unpacked(self.packed(tensor), tuple(tensor.shape))


def what_comes_back_is_float32_of_the_same_shape(trial: CodecTrial) -> None:
    """Scalars and empty tensors too."""
    for tensor in trial.tensors:
        back = trial.decoded(tensor)
        kind, expected = (back.dtype, tuple(back.shape)), (torch.float32, tuple(tensor.shape))
        require(kind == expected, f"A tensor of the shape {expected[1]} comes back as {kind}.")


def what_is_lost_is_little_or_made_good(trial: CodecTrial) -> None:
    """The error is below 1/128 of a tensor's norm or, with `feeds_back`, below the norm itself.

    Karimireddy et al. 2019 (arXiv 1901.09847), assumption A: error feedback holds with |x - C(x)|^2 <= (1 - d) |x|^2.
    """
    most = 1.0 if trial.codec.feeds_back else _MOST_LOST
    for tensor in trial.tensors:
        if not tensor.numel():
            continue
        lost = norm({"": trial.decoded(tensor) - tensor}) / norm({"": tensor})
        advice = "" if trial.codec.feeds_back else "; a codec that leaves out more has to say `feeds_back = True`"
        problem = f"Of a tensor {tuple(tensor.shape)} it loses {lost:.3f} of its length, expected below {most:.3g}"
        require(lost < most, f"{problem}{advice}.")


def zeros_stay_zeros(trial: CodecTrial) -> None:
    """A zero delta must decode to zero."""
    for tensor in trial.tensors:
        back = trial.decoded(torch.zeros_like(tensor))
        require(not back.any(), f"Zeros of the shape {tuple(tensor.shape)} come back as {back.flatten()[:3].tolist()}.")


def equal_tensors_give_equal_bytes(trial: CodecTrial) -> None:
    """With equal seeds, independent of what was packed before; no global generator is used."""
    with no_global_draws():
        first = [trial.packed(tensor) for tensor in trial.tensors]
        again = [trial.packed(tensor) for tensor in reversed(trial.tensors)][::-1]
    for tensor, before, after in zip(trial.tensors, first, again, strict=True):
        require(before == after, f"A tensor {tuple(tensor.shape)} gives other bytes after other tensors.")


def the_other_end_needs_nothing_but_the_bytes(trial: CodecTrial) -> None:
    """A codec read from a configuration decodes the bytes of this one."""
    receiver = reread(trial.codec)
    for tensor in trial.tensors:
        data = trial.packed(tensor)
        decoded = receiver.unpack(_NAME, memoryview(data), tuple(tensor.shape))
        same = same_bits(decoded, trial.unpacked(data, tuple(tensor.shape)))
        require(same, f"Bytes of a tensor {tuple(tensor.shape)} mean something else at the other end.")


def packing_does_not_change_the_tensor(trial: CodecTrial) -> None:
    """The client still needs the tensor."""
    for tensor in trial.tensors:
        before = tensor.clone()
        trial.packed(tensor)
        require(same_bits(tensor, before), f"A tensor {tuple(tensor.shape)} was changed in place.")


def the_layout_in_memory_does_not_matter(trial: CodecTrial) -> None:
    """Transposed tensors are packed row by row, like any other."""
    tensor = torch.randn((4, 6), generator=stream(0, "transposed")).T
    require(
        trial.packed(tensor) == trial.packed(tensor.contiguous()),
        "A transposed tensor gives other bytes than its copy.",
    )


def numbers_that_are_not_finite_are_refused(trial: CodecTrial) -> None:
    """One NaN in a mean is NaN for all clients."""
    for value in (torch.nan, torch.inf, -torch.inf):
        tensor = torch.tensor([[0.0, 1.0], [value, 2.0]])
        try:
            trial.packed(tensor)
        except PayloadError:
            continue
        raise BreachError(f"A tensor with {value} is packed, expected a PayloadError.")


def finite_numbers_come_back_finite_or_are_refused(trial: CodecTrial) -> None:
    """From the smallest to the largest float32."""
    limits = torch.finfo(torch.float32)
    for value in (limits.max, -limits.max, limits.tiny, 2.0**-149, 65_504.0, 1e5):
        tensor = torch.tensor([[value, 1.0], [value / 2, 0.0]])
        try:
            back = trial.decoded(tensor)
        except PayloadError:
            continue
        require(is_finite(back), f"{value:.3g} comes back as {back.flatten().tolist()}.")


def bytes_of_another_length_are_refused(trial: CodecTrial) -> None:
    """Truncated bytes, and bytes with an extra end."""
    for tensor in trial.tensors:
        data = trial.packed(tensor)
        wrong_lengths = {len(data) + 1: data + b"\0", len(data) // 2: data[: len(data) // 2], 0: b""}
        for length, wrong in wrong_lengths.items():
            if length != len(data):
                _require_refused(trial, wrong, tuple(tensor.shape), f"{length} bytes instead of {len(data)}")


def altered_bytes_give_a_tensor_or_an_error_of_ours(trial: CodecTrial) -> None:
    """No bytes may cause another exception."""
    tensor = trial.tensors[3]
    data = trial.packed(tensor)
    for place in range(len(data)):
        for value in (0x00, 0x7F, 0xFF):
            altered = data[:place] + bytes([value]) + data[place + 1 :]
            back = _tried(trial, altered, tuple(tensor.shape), f"byte {place} set to {value}")
            same = back is None or (back.shape == tensor.shape and back.dtype == torch.float32)
            require(same, f"With byte {place} set to {value} it gives {back}.")


def any_bytes_give_a_tensor_or_an_error_of_ours(trial: CodecTrial) -> None:
    """Bytes at random, of the right length and of others."""
    for tensor in trial.tensors:
        shape, length = tuple(tensor.shape), len(trial.packed(tensor))
        for number, num_bytes in enumerate(sorted({length, length + 1, length // 2, 1, 40})):
            for draw in range(20):
                numbers = torch.randint(256, (num_bytes,), generator=stream(draw, "bytes", number), dtype=torch.uint8)
                back = _tried(trial, numbers.numpy().tobytes(), shape, f"{num_bytes} bytes at random")
                same = back is None or (tuple(back.shape) == shape and back.dtype == torch.float32)
                require(same, f"{num_bytes} bytes at random for a tensor {shape} give {back}.")


def it_takes_no_more_bytes_than_the_server_allows(trial: CodecTrial) -> None:
    """Eight bytes a number and 64 more: the limit for what a site may send."""
    for tensor in trial.tensors:
        length, most = len(trial.packed(tensor)), most_bytes(tensor.numel())
        require(length <= most, f"A tensor {tuple(tensor.shape)} takes {length} bytes, expected at most {most}.")


def nothing_is_allocated_before_the_length_is_checked(trial: CodecTrial) -> None:
    """A few bytes for a tensor of 2^46 numbers, which no machine can hold."""
    for data in (b"", bytes(8), trial.packed(trial.tensors[2])):
        _require_refused(trial, data, (2**23, 2**23), f"{len(data)} bytes for a tensor of 2^46 numbers")


def its_name_fits_into_the_header_of_a_payload(trial: CodecTrial) -> None:
    """ASCII, 255 characters at most."""
    name = trial.codec.name
    require(name.isascii() and 0 < len(name) < 256, f"It is {name!r}, expected 1 to 255 ASCII characters.")


CHECKS: tuple[Callable[[CodecTrial], None], ...] = (
    its_name_fits_into_the_header_of_a_payload,
    what_comes_back_is_float32_of_the_same_shape,
    what_is_lost_is_little_or_made_good,
    zeros_stay_zeros,
    equal_tensors_give_equal_bytes,
    the_other_end_needs_nothing_but_the_bytes,
    packing_does_not_change_the_tensor,
    the_layout_in_memory_does_not_matter,
    numbers_that_are_not_finite_are_refused,
    finite_numbers_come_back_finite_or_are_refused,
    bytes_of_another_length_are_refused,
    altered_bytes_give_a_tensor_or_an_error_of_ours,
    any_bytes_give_a_tensor_or_an_error_of_ours,
    it_takes_no_more_bytes_than_the_server_allows,
    nothing_is_allocated_before_the_length_is_checked,
)


def _tried(trial: CodecTrial, data: bytes, shape: tuple[int, ...], what: str) -> Tensor | None:
    """The decoded tensor; None if the bytes are refused."""
    try:
        return trial.unpacked(data, shape)
    except PayloadError:
        return None
    except Exception as error:  # a codec may raise anything
        raise BreachError(
            f"{what} ends with {type(error).__name__}: {str(error)[:200]}, expected a PayloadError."
        ) from error


def _require_refused(trial: CodecTrial, data: bytes, shape: tuple[int, ...], what: str) -> None:
    require(_tried(trial, data, shape, what) is None, f"{what} are accepted, expected a PayloadError.")
