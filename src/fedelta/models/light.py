"""Imports transformers in half the time, without parts of PyTorch and SciPy that fedelta's commands never use.

For any model, transformers imports PyTorch's compiler to mark a few functions for it, its distributed tensors, and
SciPy's solver of assignment problems for the loss of object detectors: 1,300 modules. To find out what its
models export it reads the source of all of them, for itself and again for `transformers.models`. While a model is built
without memory for its weights, PyTorch imports SymPy to find out that `True` holds.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

logger = logging.getLogger("fedelta")

# Set by the commands, whose processes and workers run only fedelta.
LIGHT_IMPORTS = "FEDELTA_LIGHT_IMPORTS"

_COMPILER = "torch._dynamo"
_SHAPES = "torch.fx.experimental.symbolic_shapes"
# What its functions answer about numbers, for those that building a model without memory calls.
_OF_NUMBERS: dict[str, Callable[[int], Any]] = {"expect_true": bool, "is_nested_int": lambda _: False}
# Modules from which transformers imports functions or classes that it needs only in some calls.
_NEEDED_LATER = ("torch._dynamo._trace_wrapped_higher_order_op", "scipy.optimize")


def import_lightly() -> None:
    """Imports the common part of transformers, in the light form if `LIGHT_IMPORTS` is "1".

    In the light form `torch.compile` ignores transformers' marks, and transformers takes `torch.distributed` for
    unavailable, as in builds of PyTorch that lack it; everything else works as usual. A version of transformers that
    cannot be imported this way is imported in full by the next import.
    """
    if os.environ.get(LIGHT_IMPORTS) != "1" or _COMPILER in sys.modules:
        return
    stand_ins = {_COMPILER: _Compiler(_COMPILER)} | {
        name: _NeededLater(name) for name in _NEEDED_LATER if name not in sys.modules
    }
    try:
        structures = import_module("transformers.utils.import_utils")
        with (
            _replaced(sys.modules, stand_ins),
            _replaced(vars(structures), {"define_import_structure": _Structures(structures.define_import_structure)}),
            _replaced(vars(torch), {"_dynamo": stand_ins[_COMPILER]}),
            _replaced(vars(torch.distributed), {"is_available": lambda: False}),
        ):
            import_module("transformers.modeling_utils")
            import_module("transformers.masking_utils")
    except Exception:  # transformers and what it imports may raise anything
        logger.debug("transformers cannot be imported in its light form", exc_info=True)


@contextmanager
def without_symbols() -> Iterator[None]:
    """Context manager in which PyTorch checks sizes that are numbers without SymPy, if `LIGHT_IMPORTS` is "1"."""
    if os.environ.get(LIGHT_IMPORTS) != "1" or _SHAPES in sys.modules:
        yield
        return
    stand_in = _Shapes(_SHAPES)
    sys.modules[_SHAPES] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(_SHAPES) is stand_in:
            del sys.modules[_SHAPES]


@contextmanager
def _replaced(names: dict[str, Any], others: dict[str, Any]) -> Iterator[None]:
    """Context manager that replaces attributes by `others`; Any: modules and functions."""
    before = {name: names[name] for name in others if name in names}
    names.update(others)
    try:
        yield
    finally:
        for name in others:
            names.pop(name, None)
        names.update(before)


class _Structures:
    """What the models export: what transformers has read for itself, without the names of backends that are missing.

    findings/transformers_reads_all_models_twice_to_name_one.sh shows that it would read all of them again.
    """

    def __init__(self, read: Callable[..., Any]) -> None:
        self._read = read

    def __call__(self, path: str, prefix: str | None = None) -> Any:  # Any: structures of transformers
        if prefix is not None or Path(path).parent.name != "models":
            return self._read(path, prefix)
        exports: dict[str, Any] = sys.modules["transformers"]._import_structure
        of_models = {
            name.removeprefix("models."): values for name, values in exports.items() if name.startswith("models.")
        }
        return {frozenset(): of_models}


class _Compiler(ModuleType):
    """Stands in for the compiler; its decorators return functions unchanged."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _unmarked


def _unmarked(function: Any = None, *_: object, **__: object) -> Any:
    """`function` itself or, for `decorator(reason=...)`, a decorator that returns it; Any: functions and properties."""
    return _unmarked if function is None else function


class _NeededLater(ModuleType):
    """Stands in for a module that is imported when one of its functions or classes is called; Any: their results."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(import_module(self.__name__), name)(*args, **kwargs)

        return call


class _Shapes(ModuleType):
    """Stands in for PyTorch's symbolic shapes as long as sizes are numbers, and makes way for them at anything else."""

    def __getattr__(self, name: str) -> Any:  # Any: what the module has
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in _OF_NUMBERS:
            return getattr(self._symbolic_shapes(), name)

        def answer(value: Any, *args: Any) -> Any:  # Any: a number, or one of PyTorch's symbols
            if isinstance(value, int):
                return _OF_NUMBERS[name](value)
            return getattr(self._symbolic_shapes(), name)(value, *args)

        return answer

    def _symbolic_shapes(self) -> Any:  # Any: attributes of a module
        if sys.modules.get(_SHAPES) is self:
            del sys.modules[_SHAPES]
        return import_module(_SHAPES)
