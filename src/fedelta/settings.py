"""The base of every object that a configuration can describe.

A setting is a frozen value whose fields are the hyperparameters of the object that uses them; there is no
parallel configuration class. An unknown key or a wrong type is refused when the object is made, whether it
comes from a TOML file or from Python.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen, strictly checked value; subclasses are final."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
