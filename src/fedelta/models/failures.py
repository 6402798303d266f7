"""What went wrong inside of a model, in words that name the model and what it was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from fedelta.errors import FedeltaError, ModelError
from fedelta.plugins import blame


@contextmanager
def told(name: str, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Makes whatever is raised inside one `ModelError`; errors of this package pass.

    Args:
        name: of the model, or of what fails.
        inputs: what it was given.

    Raises:
        PluginError: the error arose in the code of a plug-in.
        ModelError: has `name`, the shapes of the inputs, and the error.
    """
    try:
        yield
    except FedeltaError:
        raise
    # A model is code from elsewhere: any class of error may come out of it.
    except Exception as error:
        if (blamed := blame(error)) is not None:
            raise blamed from error
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        raise ModelError(
            f"{name} fails on {shapes}: {type(error).__name__}: {reason}",
            hint=_hint(error, inputs),
        ) from error


def _hint(error: Exception, inputs: Mapping[str, Tensor]) -> str:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "lower `client.batch_size`, or set `runtime.lanes` to fewer."
    if "input_ids" in inputs:
        return "see that `data.max_length` is within the model's positions, and that the tokenizer is the model's."
    if "pixel_values" in inputs:
        return "see that `model.image_size` and the number of channels are what the model takes."
    return "see that the inputs are what the model takes."
