"""A codec that breaks a contract is told by it."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
import torch
from tests.testing.broken import broken
from torch import Tensor

from fedelta.errors import PayloadError
from fedelta.settings import Settings
from fedelta.testing import check


class Good(Settings):
    """Float32 as it is in memory."""

    name: Literal["good"] = "good"
    feeds_back: ClassVar[bool] = False

    def pack(self, name: str, tensor: Tensor, seed: int) -> bytes:
        if not tensor.isfinite().all():
            raise PayloadError("not finite")
        return tensor.contiguous().numpy().tobytes()

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        numel = torch.Size(shape).numel()
        if len(data) != 4 * numel:
            raise PayloadError("length")
        return torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape) if numel else torch.zeros(shape)


class Coarse(Good):
    """A tenth of every number is lost."""

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        return 0.9 * super().unpack(name, data, shape)


class Doubling(Good):
    """What error feedback cannot make good."""

    feeds_back: ClassVar[bool] = True

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        return -super().unpack(name, data, shape)


class Double(Good):
    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        return super().unpack(name, data, shape).double()


class Flat(Good):
    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        return super().unpack(name, data, shape).flatten()


class Shifted(Good):
    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        return super().unpack(name, data, shape) + 1e-6


class Dithered(Good):
    def pack(self, name: str, tensor: Tensor, seed: int) -> bytes:
        return super().pack(name, tensor + 1e-9 * torch.rand(tensor.shape), seed)


_seen: list[int] = []


class Counting(Good):
    """Bytes that depend on how many tensors were packed before."""

    def pack(self, name: str, tensor: Tensor, seed: int) -> bytes:
        _seen.append(1)
        return super().pack(name, tensor * (1 + 1e-6 * (len(_seen) % 7)), seed)


class InPlace(Good):
    def pack(self, name: str, tensor: Tensor, seed: int) -> bytes:
        return super().pack(name, tensor.mul_(1.0 + 1e-3), seed)


class ColumnMajor(Good):
    def pack(self, name: str, tensor: Tensor, seed: int) -> bytes:
        return super().pack(name, tensor if tensor.is_contiguous() else tensor.T, seed)


class AcceptsNan(Good):
    def pack(self, name: str, tensor: Tensor, seed: int) -> bytes:
        return tensor.contiguous().numpy().tobytes()


class Overflowing(Good):
    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        return super().unpack(name, data, shape) * 1.001


class Lenient(Good):
    """Takes what is cut off for zeros."""

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        numel = torch.Size(shape).numel()
        whole = bytes(data)[: 4 * numel].ljust(4 * numel, b"\0") if numel < 1000 else bytes(data)
        return super().unpack(name, memoryview(whole), shape)


class Trusting(Good):
    """Leaves it to torch to find out that there are too few bytes."""

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        result = torch.frombuffer(bytearray(data), dtype=torch.float32) if len(data) else torch.zeros(0)
        return result.reshape(shape)


class Eager(Good):
    """Makes the tensor before it looks at the bytes."""

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        result = torch.zeros(shape)
        return result.copy_(super().unpack(name, data, shape))


class Shouting(Good):
    name: Literal["größer"] = "größer"


LENGTHS = "bytes of another length are refused"


@pytest.mark.parametrize(
    ("codec", "sentence", "problem"),
    [
        (Coarse, "what is lost is little or made good", "loses 0.100 of its length, expected below 0.00781"),
        (Doubling, "what is lost is little or made good", "loses 2.000 of its length, expected below 1"),
        (Double, "what comes back is float32 of the same shape", "comes back as (torch.float64"),
        (Flat, "what comes back is float32 of the same shape", "of the shape () comes back as"),
        (Shifted, "zeros stay zeros", "come back as [9.99"),
        (Dithered, "equal tensors give equal bytes", "draws from the global generator of torch"),
        (Counting, "equal tensors give equal bytes", "gives other bytes after other tensors"),
        (InPlace, "packing does not change the tensor", "was changed in place"),
        (ColumnMajor, "the layout in memory does not matter", "gives other bytes than its copy"),
        (AcceptsNan, "numbers that are not finite are refused", "A tensor with nan is packed"),
        (Overflowing, "finite numbers come back finite or are refused", "3.4e+38 comes back as [inf"),
        (Lenient, LENGTHS, "are accepted, expected a PayloadError"),
        (Trusting, LENGTHS, "expected a PayloadError"),
        (Eager, "nothing is allocated before the length is checked", "ends with RuntimeError"),
        (Shouting, "its name fits into the header of a payload", "expected 1 to 255 ASCII characters"),
    ],
)
def test_a_broken_codec_breaks_its_contract(codec: type[Good], sentence: str, problem: str):
    assert problem in broken(codec)[sentence]


def test_a_codec_that_keeps_every_contract_passes():
    check(Good)
