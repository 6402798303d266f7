"""Turns errors from inside a model into messages that name the model and its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from fedelta.errors import FedeltaError, ModelError
from fedelta.plugins import blame


@contextmanager
def model_errors(name: str, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Context manager that turns any error raised inside it into a `ModelError`; errors of this package pass unchanged.

    Args:
        name: of the model or operation, for the message.
        inputs: of the model.

    Raises:
        PluginError: the error arose in the code of a plug-in.
        ModelError: names `name`, the shapes of the inputs, and the error.
    """
    try:
        yield
    except FedeltaError:
        raise
    # A model is third-party code and may raise any class of error.
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
        return "lower `client.batch_size` or `runtime.lanes`."
    if "input_ids" in inputs:
        return "check that `data.max_length` does not exceed the model's positions and that the tokenizer is its own."
    if "pixel_values" in inputs:
        return "check that the model supports `model.image_size` and the number of channels."
    if any(not tensor.is_floating_point() for tensor in inputs.values()) and "type" in str(error):
        return (
            "the inputs are whole numbers; a model that takes others needs them converted, such as `x.float() / 255`."
        )
    return "check that the model supports these inputs."
