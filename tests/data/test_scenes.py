from __future__ import annotations

import numpy as np

from fedelta.data.scenes import scenes


def test_a_picture_shows_the_digits_that_its_columns_name():
    # Every pixel of digit d has the value 10 (d + 1); the first 1,437 digits are 0 to 4, the others 5 to 9.
    labels = np.where(np.arange(1797) < 1437, np.arange(1797) % 5, 5 + np.arange(1797) % 5)
    pixels = np.broadcast_to(10 * (labels + 1)[:, None, None], (1797, 8, 8)).astype("uint8")
    for name, rows in scenes(pixels, labels).items():
        own = range(5) if name == "train" else range(5, 10)
        for row in rows:
            places = np.array(row["image"])[::8, ::8].flatten()
            shown = [int(value) // 10 - 1 for value in places if value]
            assert row["digits"] == sorted(set(shown))
            assert (row["number"], row["sum"]) == (len(shown), sum(shown))
            assert set(shown) <= set(own)
    assert any(not row["digits"] for row in rows)


def test_the_scenes_are_always_the_same():
    labels = np.arange(1797) % 10
    pixels = np.broadcast_to(labels[:, None, None], (1797, 8, 8)).astype("uint8")
    first, again = (scenes(pixels, labels) for _ in range(2))
    assert first["test"].to_dict() == again["test"].to_dict()
    assert (len(first["train"]), len(first["test"])) == (1600, 400)
