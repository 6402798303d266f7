"""The channel: one codec for downloads, one for uploads, with error feedback of uploads.

A download carries values. The client's anchor is the *decoded* value, so the rounding error of a download is in no
delta and needs no correction. An upload carries deltas. With a codec that feeds back, the client sends

    sent = delta + residual,    residual' = sent - decoded(sent)

and keeps the new residual once its reply is accepted (federation/client.py). The residual of a tensor that does not
travel in a round does not change.

Source: Karimireddy et al. 2019 (error feedback, arXiv 1901.09847), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from fedelta.catalog import CODECS
from fedelta.codecs.base import Codec
from fedelta.codecs.cast import Cast
from fedelta.settings import Settings
from fedelta.settings.registry import Chosen

ChosenCodec = Annotated[Codec, Chosen(CODECS)]


class Channel(Settings):
    """The codecs of both directions: section `[codec]`, in which `name` sets both at once.

    Args:
        down: codec of downloads, server to client.
        up: codec of uploads, client to server.
    """

    shorthand: ClassVar[Any] = ChosenCodec
    down: ChosenCodec = Cast()
    up: ChosenCodec = Cast()

    @model_validator(mode="before")
    @classmethod
    def _both(cls, table: Any) -> Any:  # Any: what stands in a configuration
        """Uses `name` and the fields beside it for each direction that has no table."""
        if not isinstance(table, Mapping) or "name" not in table:
            return table
        both = {k: v for k, v in table.items() if k not in ("down", "up")}
        return {"down": both, "up": both} | {k: v for k, v in table.items() if k in ("down", "up")}

    @model_serializer(mode="wrap")
    def _one_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Writes equal directions as one `name`."""
        table: dict[str, Any] = handler(self)
        return table["up"] if self.down == self.up else table
