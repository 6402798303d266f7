"""The channel: one codec for downloads, one for uploads, with error feedback in both directions.

An upload carries deltas. With a codec that feeds back, the client sends

    sent = delta + residual,    residual' = sent - decoded(sent)

and keeps the new residual once its reply is accepted (federation/client.py). The residual of a tensor that does not
travel in a round does not change.

A download carries values, or, with a codec that feeds back, changes of values, with the residual at the server
(changes.py). The client's anchor is the *decoded* value, so what a download leaves out is in no delta.

Source: Karimireddy et al. 2019 (error feedback, arXiv 1901.09847), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from fedelta.catalog import CODECS
from fedelta.codecs.base import Codec
from fedelta.codecs.cast import Cast
from fedelta.codecs.changes import Mirror, Reader, first_download, whole_download
from fedelta.codecs.sparse import RandomK, TopK
from fedelta.codecs.wire import encode
from fedelta.params import Params, ParamSpec
from fedelta.settings import Context, Settings
from fedelta.settings.registry import Chosen

ChosenCodec = Annotated[Codec, Chosen(CODECS)]


class Channel(Settings):
    """The codecs of both directions: section `[codec]`, in which `name` sets both at once.

    Args:
        down: codec of downloads, server to client.
        up: codec of uploads, client to server.
        error_feedback: whether what a coarse codec leaves out is sent later; without it is lost, and downloads are
            whole values, rounded.
        changes: whether downloads with a coarse codec carry changes; otherwise whole values, rounded.
        entropy: how payloads are compressed without loss, where that makes them shorter.
    """

    shorthand: ClassVar[Any] = ChosenCodec
    down: ChosenCodec = Cast()
    up: ChosenCodec = Cast()
    error_feedback: bool = True
    changes: bool = True
    entropy: Literal["none", "zstd"] = "none"

    @cached_property
    def feeds_back(self) -> bool:
        """Whether clients keep a residual of their uploads."""
        return self.error_feedback and self.up.feeds_back

    @cached_property
    def sends_changes(self) -> bool:
        """Whether downloads carry changes."""
        return self.error_feedback and self.changes and self.down.feeds_back

    @cached_property
    def compresses(self) -> bool:
        """Whether payloads are compressed."""
        return self.entropy == "zstd"

    @property
    def is_estimate(self) -> bool:
        """Whether the length of a payload depends on the values in it."""
        return self.compresses or any(isinstance(codec, TopK) for codec in (self.down, self.up))

    def change(self, params: Params, spec: ParamSpec) -> bytes:
        """The download of a client that was in the round before, if these tensors have changed from zero since."""
        mirror = Mirror().advanced(
            1, {name: torch.zeros_like(value) for name, value in params.items()}, spec, self.down, 0
        )
        mirror = mirror.kept({0: params}).advanced(2, params, spec, self.down, 0)
        return mirror.payload(params, mirror.since(0, params), spec, self.down, compress=self.compresses)[0]

    def upload(self, params: Params, spec: ParamSpec) -> bytes:
        """An upload with these tensors, for its length."""
        return encode(params, spec, self.up, compress=self.compresses)[0]

    def first_download(self, params: Params, spec: ParamSpec) -> bytes:
        """The download of these tensors in the first round in which they travel."""
        if self.sends_changes:
            return first_download(params, spec, self.down, compress=self.compresses)
        return encode(params, spec, self.down, compress=self.compresses)[0]

    def whole_download(self, params: Params, spec: ParamSpec) -> bytes:
        """The download of these tensors for a client that holds nothing in a later round; no other is longer."""
        if self.sends_changes:
            return whole_download(params, spec, self.down, compress=self.compresses)
        return encode(params, spec, self.down, compress=self.compresses)[0]

    def reader(self, held: Params) -> Codec:
        """What decodes the downloads of a client that holds these mirrored values."""
        return Reader(self.down, held) if self.sends_changes else self.down

    def problems(self, context: Context) -> list[str]:
        """Reports what a model, the strategy's mean or low-rank aggregation cannot do with these codecs."""
        problems, mean, joining = [], context.get("strategy.mean"), context.get("aggregation")
        if mean is not None and mean.reads == "each" and _leaves_out(self.up):
            problems.append(
                f"`codec.up.name` is {self.up.name!r}, but `strategy.mean.name` is {mean.name!r}, which compares the "
                f"values of clients: those that a client leaves out would count as zeros; choose 'int4' or 'sign'"
            )
        if _leaves_out(self.down) and not self.sends_changes:
            off = "changes" if self.error_feedback else "error_feedback"
            problems.append(
                f"`codec.down.name` is {self.down.name!r}, but `codec.{off}` is false, so that downloads are whole "
                f"values: those that are left out would be zeros in the clients' models; set it to true, or choose "
                f"another `codec.down.name`"
            )
        if joining is None or not joining.joins:
            return problems
        if self.feeds_back:
            problems.append(
                f"`codec.up.name` is {self.up.name!r} with error feedback, but `aggregation.name` is {joining.name!r}, "
                f"which makes a new pair of factors in every round: what was left out of the old pair does not belong "
                f"to the new one; set `codec.error_feedback = false`, or choose 'float16'"
            )
        if self.down.feeds_back:
            problems.append(
                f"`codec.down.name` is {self.down.name!r}, but `aggregation.name` is {joining.name!r}, which "
                f"multiplies the factors of each client and has to know what it started from; choose 'float16'"
            )
        return problems

    @model_validator(mode="before")
    @classmethod
    def _both(cls, table: Any) -> Any:  # Any: what stands in a configuration
        """Uses `name` and the fields beside it for each direction that has no table."""
        if not isinstance(table, Mapping) or "name" not in table:
            return table
        both = {k: v for k, v in table.items() if k not in cls.model_fields}
        return {"down": both, "up": both} | {k: v for k, v in table.items() if k in cls.model_fields}

    @model_serializer(mode="wrap")
    def _one_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Writes equal directions as one `name`, and of the rest what is not usual."""
        table: dict[str, Any] = handler(self)
        down, up = table.pop("down"), table.pop("up")
        usual = {key: field.default for key, field in type(self).model_fields.items()}
        rest = {key: value for key, value in table.items() if value != usual[key]}
        # As text, because 1 and 1.0 are equal, but not the same `k`.
        return (up if repr(down) == repr(up) else {"down": down, "up": up}) | rest


def _leaves_out(codec: Codec) -> bool:
    """Whether a codec writes tensors in part."""
    return isinstance(codec, TopK | RandomK) and codec.leaves_out
