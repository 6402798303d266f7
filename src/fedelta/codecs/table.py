"""All codecs, by the name that a configuration and a payload's header call them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedelta.codecs.cast import Cast
from fedelta.codecs.quantize import Int8

AnyCodec = Annotated[Cast | Int8, Field(discriminator="name")]
