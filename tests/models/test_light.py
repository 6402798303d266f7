"""The light import of transformers; tests/test_import_time.py tries it in a process of its own."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from fedelta.models import light


@pytest.mark.parametrize("value", [None, "0"])
def test_a_process_that_is_not_a_command_imports_transformers_in_full(value, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.setattr(light, "import_module", pytest.fail)
    monkeypatch.delenv(light.LIGHT_IMPORTS, raising=False)
    if value is not None:
        monkeypatch.setenv(light.LIGHT_IMPORTS, value)
    light.import_lightly()


def test_nothing_is_replaced_where_the_compiler_is_imported_already(monkeypatch):
    monkeypatch.setenv(light.LIGHT_IMPORTS, "1")
    monkeypatch.setitem(sys.modules, "torch._dynamo", ModuleType("torch._dynamo"))
    monkeypatch.setattr(light, "import_module", pytest.fail)
    light.import_lightly()


def test_modules_are_as_before_when_the_light_import_fails(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.setenv(light.LIGHT_IMPORTS, "1")
    before, seen = dict(sys.modules), []

    def fail(name: str) -> None:
        seen.append((name, type(sys.modules["torch._dynamo"])))
        raise ImportError(name)

    monkeypatch.setattr(light, "import_module", fail)
    light.import_lightly()
    assert seen == [("transformers.modeling_utils", light._Compiler)]
    assert dict(sys.modules) == before


def test_the_stand_in_for_the_compiler_leaves_functions_as_they_are():
    compiler = light._Compiler("compiler")
    assert compiler.disable(len) is compiler.allow_in_graph(len) is len
    assert compiler.disable(recursive=False)(len) is len


def test_a_function_that_is_needed_later_is_imported_when_it_is_called():
    assert light._NeededLater("math").sqrt(4.0) == 2.0


def leave_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes a module away until the test ends; then it is there again, or not, as before."""
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.delitem(sys.modules, name)


def test_a_bool_is_true_without_symbols(monkeypatch):
    monkeypatch.setenv(light.LIGHT_IMPORTS, "1")
    leave_out(light._SHAPES, monkeypatch)
    monkeypatch.setattr(light, "import_module", pytest.fail)
    with light.without_symbols():
        torch._check(True)
        with pytest.raises(RuntimeError, match="too small"):
            torch._check(False, lambda: "too small")
        assert torch.randn(3, device="meta").shape == (3,)
    assert light._SHAPES not in sys.modules


def test_symbols_are_imported_where_something_asks_for_more(monkeypatch):
    monkeypatch.setenv(light.LIGHT_IMPORTS, "1")
    leave_out(light._SHAPES, monkeypatch)
    module = ModuleType(light._SHAPES)
    module.guard_bool = module.expect_true = lambda value: f"asked {value}"  # not what it answers about numbers

    def fetch(name: str) -> ModuleType:
        assert name not in sys.modules
        return sys.modules.setdefault(name, module)

    monkeypatch.setattr(light, "import_module", fetch)
    with light.without_symbols():
        stand_in = sys.modules[light._SHAPES]
        assert stand_in.guard_bool(1) == "asked 1"
        assert sys.modules[light._SHAPES] is module
    assert sys.modules[light._SHAPES] is module  # it stays
    del sys.modules[light._SHAPES]
    with light.without_symbols():
        assert sys.modules[light._SHAPES].expect_true("s0 > 1") == "asked s0 > 1"


@pytest.mark.parametrize("value", [None, "0"])
def test_symbols_are_left_alone_in_other_processes(value, monkeypatch):
    monkeypatch.delenv(light.LIGHT_IMPORTS, raising=False)
    if value is not None:
        monkeypatch.setenv(light.LIGHT_IMPORTS, value)
    leave_out(light._SHAPES, monkeypatch)
    with light.without_symbols():
        assert light._SHAPES not in sys.modules
