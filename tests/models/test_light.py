"""The light import of transformers; tests/test_import_time.py tries it in a process of its own."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import transformers.models.vit
from transformers.utils import import_utils

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

    def fail(name: str) -> ModuleType:
        if name == import_utils.__name__:
            return import_utils
        seen.append((name, type(sys.modules["torch._dynamo"])))
        raise ImportError(name)

    monkeypatch.setattr(light, "import_module", fail)
    light.import_lightly()
    assert seen == [("transformers.modeling_utils", light._Compiler)]
    assert dict(sys.modules) == before
    assert not isinstance(import_utils.define_import_structure, light._Structures)


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


def test_what_models_export_is_known_without_reading_them_again():
    path = transformers.models.__file__
    by_backends = import_utils.define_import_structure(path)
    expected: dict[str, set[str]] = {}
    for exports in by_backends.values():
        for name, values in exports.items():
            expected.setdefault(name, set()).update(values)

    def read(path: str, prefix: str | None) -> tuple[str, str | None]:
        return path, prefix

    structures = light._Structures(read)
    [known] = structures(path).values()
    assert {name: set(values) for name, values in known.items()} == expected
    # Of anything else nothing is known.
    assert structures(path, "models") == (path, "models")
    assert structures(transformers.models.vit.__file__) == (transformers.models.vit.__file__, None)
