"""Pictures of up to four handwritten digits, for tasks with several labels or with numbers.

A picture has four places; in each is one of scikit-learn's digits, or nothing. Digits of training pictures are not in
test pictures. Columns: `image` (16x16 gray pixels), `digits` (the set of digits), `number` (how many there are) and
`sum`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets import Dataset

_NUM_TRAINING, _NUM_TEST = 1600, 400
_SHARE = 0.55  # of places with a digit
_LAST_TRAINING = 1437  # four fifths of the digits


def scenes(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, Dataset]:
    """The training and the test set, always the same.

    Args:
        pixels: of the digits, [N, 8, 8].
        labels: which digits these are, [N].
    """
    last = _LAST_TRAINING
    return {
        "train": _scenes(pixels[:last], labels[:last], _NUM_TRAINING, np.random.default_rng(0)),
        "test": _scenes(pixels[last:], labels[last:], _NUM_TEST, np.random.default_rng(1)),
    }


def _scenes(pixels: NDArray[np.uint8], labels: NDArray[np.int64], size: int, generator: np.random.Generator) -> Dataset:
    from datasets import Array2D, ClassLabel, Dataset, Features, List, Value

    drawn, there = generator.integers(0, len(labels), (size, 2, 2)), generator.random((size, 2, 2)) < _SHARE
    tiles = pixels[drawn] * there[..., None, None].astype("uint8")  # [size, 2, 2, 8, 8]
    images = tiles.transpose(0, 1, 3, 2, 4).reshape(size, 16, 16)
    digits = np.where(there, labels[drawn], -1).reshape(size, 4)
    content = {
        "image": list(images),
        "digits": [sorted({int(digit) for digit in row if digit >= 0}) for row in digits],
        "number": there.reshape(size, 4).sum(1).astype(float).tolist(),
        "sum": np.maximum(digits, 0).sum(1).astype(float).tolist(),
    }
    features = Features(
        {
            "image": Array2D(shape=(16, 16), dtype="uint8"),
            "digits": List(ClassLabel(num_classes=10)),
            "number": Value("float64"),
            "sum": Value("float64"),
        }
    )
    return Dataset.from_dict(content, features=features)
