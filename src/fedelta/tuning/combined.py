"""Combines several tuning methods: `tuning.name = "lora+bias"`, or a list of tables.

Each method edits the model as if it were alone, and finds its layers inside the wrappers of the others. Methods are
applied from the outside to the inside (blocks, then MLPs, then single layers, then biases), so that later ones do not
rename the tensors of earlier ones; `merge` goes in the opposite order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_serializer, field_validator
from torch import Generator

from fedelta.catalog import TUNING_METHODS
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec, TensorSpec
from fedelta.seeds import stream
from fedelta.settings import Settings
from fedelta.settings.registry import Chosen
from fedelta.tuning.base import TuningMethod, specification
from fedelta.tuning.lanes import Lanes


class Combined(Settings):
    """Trains everything that its methods train.

    Args:
        methods: two or more different methods, in any order; not `full`, which trains everything already.
    """

    max_lanes: ClassVar[int | None] = None
    name: Literal["combined"] = "combined"  # dumped as the names of its methods, "lora+bias"; `expand` reads it back
    methods: Annotated[tuple[Annotated[TuningMethod, Chosen(TUNING_METHODS)], ...], Field(strict=False)]

    @property
    def names(self) -> str:
        """The names of its methods, such as `lora+bias`."""
        return "+".join(method.name for method in self.methods)

    @field_serializer("name")
    def _to_names(self, _: str) -> str:
        return self.names

    @field_validator("methods")
    @classmethod
    def _in_order(cls, methods: tuple[TuningMethod, ...]) -> tuple[TuningMethod, ...]:
        names = [method.name for method in methods]
        if len(names) < 2:
            raise ValueError(f"a combination is of at least 2 methods, found {len(names)}")
        if len(set(names)) < len(names):
            raise ValueError(f"a method stands twice in {'+'.join(names)}")
        if "full" in names:
            raise ValueError(f"'full' trains everything already, found {'+'.join(names)}")
        order = TUNING_METHODS.known
        return tuple(sorted(methods, key=lambda method: order.index(method.name)))

    @property
    def merges(self) -> bool:
        """Whether this holds for all its methods."""
        return all(method.merges for method in self.methods)

    @property
    def starts_as_base(self) -> bool:
        """Whether this holds for all its methods."""
        return all(method.starts_as_base for method in self.methods)

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        tensors: dict[str, TensorSpec] = {}
        seed = generator.initial_seed()
        for method in self.methods:
            # One stream per method, so that it starts with the same bits in any combination.
            tensors |= method.apply(backbone, lanes, stream(seed, method.name)).tensors
        return specification(backbone, tensors)

    def merge(self, backbone: Backbone) -> None:
        """Merges every method, the innermost first."""
        for method in reversed(self.methods):
            method.merge(backbone)


def expand(section: Any) -> Any:
    """A section `[tuning]` with its short form expanded to the fields of `Combined`; Any: unchecked values.

    Short forms are `name = "a+b"`, a list of names, and a list of tables. A field beside the name goes to every method
    that has it; an unknown field goes to the first method, which refuses it.

    >>> expand({"name": "lora+bias", "r": 4})
    {'name': 'combined', 'methods': [{'name': 'lora', 'r': 4}, {'name': 'bias'}]}
    """
    if isinstance(section, list):
        tables = [{"name": item} if isinstance(item, str) else item for item in section]
        return tables[0] if len(tables) == 1 else {"name": "combined", "methods": tables}
    if not isinstance(section, dict):
        return section
    name = section.get("name")
    names = list(map(str, name)) if isinstance(name, list) else [part.strip() for part in str(name).split("+")]
    if len(names) < 2:
        return section
    tables = section.get("methods") or [{"name": item} for item in names]
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        return {**section, "name": "combined"}  # which refuses it
    fields = {key: value for key, value in section.items() if key not in ("name", "methods")}
    unknown = fields.keys() - fields_of(names)
    methods = []
    for index, table in enumerate(tables):
        names_of_fields = fields_of([table.get("name", "")]) | (unknown if index == 0 else set())
        methods.append(table | {key: value for key, value in fields.items() if key in names_of_fields})
    return {"name": "combined", "methods": methods}


def fields_of(names: Iterable[str]) -> set[str]:
    """The fields of the methods with these names; none for an unknown name."""
    methods = (TUNING_METHODS.get(name) for name in names)
    return {field for method in methods if method is not None for field in method.model_fields}
