"""What goes wrong inside of a model is one error, which names the model and what it was given."""

from __future__ import annotations

import pytest
import torch

from fedelta.errors import DataError, ModelError
from fedelta.models.failures import model_errors


@pytest.mark.parametrize(
    ("error", "name", "text", "hint"),
    [
        (IndexError("index out of range in self"), "input_ids", "IndexError: index out of range in self", "positions"),
        (RuntimeError("mat1 and mat2\ndiffer"), "pixel_values", "RuntimeError: mat1 and mat2", "model.image_size"),
        (AttributeError(), "features", "AttributeError: no reason given", "model supports"),
        (torch.OutOfMemoryError("out of memory"), "input_ids", "out of memory", "lower `client.batch_size`"),
    ],
)
def test_any_error_becomes_one_that_names_the_model_and_the_shapes(error: Exception, name: str, text: str, hint: str):
    with pytest.raises(ModelError) as raised, model_errors("SomeModel", {name: torch.zeros(2, 3)}):
        raise error
    assert raised.value.message.startswith(f"SomeModel fails on {name} [2, 3]: ")
    assert text in raised.value.message
    assert hint in str(raised.value.hint)
    assert raised.value.__cause__ is error


def test_errors_of_this_package_pass_as_they_are():
    with pytest.raises(DataError, match=r"^a file is damaged$"), model_errors("SomeModel", {}):
        raise DataError("a file is damaged")
