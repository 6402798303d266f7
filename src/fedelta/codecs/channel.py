"""The channel: a codec for each direction, and what a lossy upload leaves to the next one.

A download carries values. The client's anchor is the *decoded* value, so that what a coarse codec rounds off in a
download is in no delta, and nothing has to be made good. An upload carries deltas; where the codec feeds back,

    sent = delta + residual,    residual' = sent - decoded(sent)

and the residual, which the client keeps and adds (federation/client.py), counts only once its reply was accepted. Of a
tensor that does not travel in a round it stays as it is.

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
    """How tensors become bytes: section `[codec]`; one name stands for both directions.

    Args:
        down: of downloads, server to client.
        up: of uploads, client to server.
    """

    shorthand: ClassVar[Any] = ChosenCodec
    down: ChosenCodec = Cast()
    up: ChosenCodec = Cast()

    @model_validator(mode="before")
    @classmethod
    def _both(cls, table: Any) -> Any:  # Any: what stands in a configuration
        """`name` and the fields beside it are those of each direction that is not given."""
        if not isinstance(table, Mapping) or "name" not in table:
            return table
        both = {k: v for k, v in table.items() if k not in ("down", "up")}
        return {"down": both, "up": both} | {k: v for k, v in table.items() if k in ("down", "up")}

    @model_serializer(mode="wrap")
    def _one_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Equal directions are written once."""
        table: dict[str, Any] = handler(self)
        return table["up"] if self.down == self.up else table
