"""Who may import whom: read from the source with `ast`, so that an import inside a function counts too.

A module imports from its own layer or a lower one. `fedelta/__init__.py` is exempt; that it is lazy is
checked in test_import_time.py. Some libraries may be imported in one place only; all must be declared.
"""

from __future__ import annotations

import ast
import graphlib
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = "fedelta"
SOURCE = Path(__file__).resolve().parents[1] / "src"

LAYERS = (  # low to high
    ("errors", "settings", "seeds", "params", "grid", "durable", "imports", "machine"),
    ("catalog", "plugins"),
    ("models", "modalities", "tasks"),
    ("tuning", "strategies", "aggregation", "codecs", "data", "privacy"),
    ("engine",),
    ("federation",),
    ("runtimes", "record"),
    ("inference", "config", "tracking", "report"),
    ("assembly",),
    (
        "choices",
        "continuing",
        "drafting",
        "evaluation",
        "experiment",
        "federating",
        "forecast",
        "hf",
        "hf_arguments",
        "inspection",
        "personalization",
        "running",
    ),
    ("comparison", "deployment", "runtimes.flower"),
    ("testing", "auditing"),
    ("cli", "checking", "tables", "terminal", "__main__"),
)
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}

HOMES = {  # library: the only modules, or packages, that may import it
    "flwr": ("fedelta.runtimes.flower",),
    "transformers": ("fedelta.models", "fedelta.modalities", "fedelta.tasks", "fedelta.hf"),
    "datasets": ("fedelta.data",),
    "flwr_datasets": ("fedelta.data",),
    "peft": ("fedelta.inference", "fedelta.record"),
    "typer": ("fedelta.cli",),
    "mlflow": ("fedelta.tracking.mlflow",),
    "wandb": ("fedelta.tracking.wandb",),
    "onnxruntime": ("fedelta.inference.export",),
    "rapidfuzz": ("fedelta.tasks.language",),
    "torchao": ("fedelta.models.quantised",),
}

# Libraries of extras that the checks do without: import name to distribution.
OPTIONAL = {"mlflow": "mlflow-skinny", "wandb": "wandb", "torchao": "torchao"}


@dataclass(frozen=True)
class Import:
    """One import: `module` imports `target` at `line`."""

    module: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}, line {self.line}: imports `{self.target}`"


def test_no_module_imports_from_a_higher_layer():
    problems = [problem for item in all_imports() if (problem := layer_problem(item))]
    assert not problems, "\n".join(problems)


def test_no_modules_import_each_other_in_a_circle():
    assert circle(sources()) == []


def test_libraries_are_imported_where_they_belong():
    problems = [problem for item in all_imports() if (problem := home_problem(item))]
    assert not problems, "\n".join(problems)


def test_every_imported_library_is_a_declared_dependency():
    declared = declared_distributions()
    problems = [f"{item}, which pyproject.toml does not declare" for item in undeclared(all_imports(), declared)]
    assert not problems, "\n".join(problems)


def test_every_module_has_a_layer():
    names = {path.stem for path in (SOURCE / PACKAGE).iterdir() if path.suffix == ".py" or is_package(path)}
    assert names - {"__init__"} <= {name.partition(".")[0] for name in LAYER_OF}, (
        "give the new module a layer in tests/test_layers.py"
    )


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("fedelta.params", "from fedelta.config import load", True),
        ("fedelta.params", "import fedelta.federation.rounds", True),
        ("fedelta.params", "from fedelta import experiment", True),
        ("fedelta.params", "from fedelta import run", True),  # a public name may live in any layer
        ("fedelta.params", "import fedelta", True),
        ("fedelta.codecs.wire", "from ..federation import records", True),
        ("fedelta.codecs.wire", "def encode():\n    from fedelta.cli import main", True),
        ("fedelta.codecs.wire", "if TYPE_CHECKING:\n    from fedelta.runtimes.base import Runtime", True),
        ("fedelta.codecs.wire", "importlib.import_module('fedelta.runtimes.base')", True),
        ("fedelta.codecs.wire", "import fedelta.unheard_of", True),
        ("fedelta.unheard_of", "from fedelta.params import Params", True),
        ("fedelta.codecs.wire", "from fedelta.codecs import base", False),
        ("fedelta.codecs.wire", "from . import base", False),
        ("fedelta.codecs.wire", "from fedelta.strategies.base import Strategy", False),  # the same layer
        ("fedelta.runtimes.processes", "from fedelta.runtimes.flower import link", True),
        ("fedelta.runtimes.flower.link", "from fedelta.deployment import conduct", False),
        ("fedelta.cli", "from fedelta import __version__", False),
        ("fedelta.cli", "import torch, fedelta.experiment", False),
    ],
)
def test_an_upward_import_is_found(module: str, source: str, found: bool):
    problems = [problem for item in imports_of(module, source) if (problem := layer_problem(item))]
    assert bool(problems) is found


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("fedelta.runtimes.processes", "from flwr.serverapp import Grid", True),
        ("fedelta.tuning.lora", "def apply():\n    import transformers", True),
        ("fedelta.runtimes.flower", "from flwr.serverapp import Grid", False),
        ("fedelta.models.hub", "import transformers.utils", False),
        ("fedelta.runtimes.flower_again", "import flwr", True),  # a longer name is not the same module
    ],
)
def test_a_library_away_from_its_home_is_found(module: str, source: str, found: bool):
    problems = [problem for item in imports_of(module, source) if (problem := home_problem(item))]
    assert bool(problems) is found


def test_a_circle_is_found_through_a_module_that_is_imported_by_its_package():
    modules = {
        "fedelta.codecs": "",
        "fedelta.codecs.wire": "from fedelta.codecs.base import Codec",
        "fedelta.codecs.base": "def encode():\n    from fedelta.params import Params",
        "fedelta.params": "from fedelta.codecs import wire",
    }
    assert set(circle(modules)) == {"fedelta.codecs.wire", "fedelta.codecs.base", "fedelta.params"}
    assert circle(modules | {"fedelta.params": "from fedelta.codecs import Codec"}) == []


def test_an_undeclared_library_is_found():
    items = list(imports_of("fedelta.params", "import os, hypothesis\nimport torch.nn\nimport fedelta.seeds"))
    assert [item.target for item in undeclared(items, {"torch"})] == ["hypothesis"]


def all_imports() -> list[Import]:
    """The imports of every module of the package but its `__init__`."""
    result: list[Import] = []
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts != (PACKAGE, "__init__"):
            result += imports_of(".".join(parts), path.read_text(encoding="utf-8"))
    return result


def sources() -> dict[str, str]:
    """The source of every module of the package but its `__init__`, by its name."""
    by_name = {}
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        by_name[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    del by_name[PACKAGE]
    return by_name


def circle(modules: Mapping[str, str]) -> list[str]:
    """Names of modules that import each other in a circle, those inside of functions too; none where there is none."""
    graph: dict[str, set[str]] = {}
    for module, source in modules.items():
        graph[module] = set()
        for node in ast.walk(ast.parse(source)):
            inner = [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            targets = [name for name in inner if name in modules] or _targets(node, module)
            graph[module] |= modules.keys() & set(targets)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def imports_of(module: str, source: str) -> Iterator[Import]:
    """Every import in `source`, at any depth, relative ones resolved; a package is named `x.__init__`."""
    for node in ast.walk(ast.parse(source)):
        for target in _targets(node, module):
            yield Import(module, target, node.lineno)


def _targets(node: ast.AST, module: str) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=base, names=names, level=level):
            start = ".".join(module.split(".")[:-level]) if level else ""
            origin = ".".join(part for part in (start, base) if part)
            # From the package itself every name counts: it may be a module, or a public name of any layer.
            return [f"{origin}.{alias.name}" for alias in names] if origin == PACKAGE else [origin]
        case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
            return [argument.value for argument in node.args[:1] if _is_text(argument)]
    return []


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def layer_problem(item: Import) -> str | None:
    """What is wrong with the direction of `item`, or None."""
    if item.target.split(".")[0] != PACKAGE or item.target == f"{PACKAGE}.__version__":
        return None
    if item.target == PACKAGE:
        return f"{item}: import the module that defines what is needed"
    here, there = _room(item.module), _room(item.target)
    if unknown := {here, there} - set(LAYER_OF):
        return f"{item}: {sorted(unknown)} has no layer; import a public name from the module that defines it"
    if LAYER_OF[there] > LAYER_OF[here]:
        return f"{item}: `{there}` is in a higher layer than `{here}`"
    return None


def _room(module: str) -> str:
    """The part of a module's name that has a layer: `runtimes/flower` has another one than the rest of `runtimes`."""
    return next(room for length in (3, 2) if (room := ".".join(module.split(".")[1:length])) in LAYER_OF or length == 2)


def home_problem(item: Import) -> str | None:
    """What is wrong with the place of `item`, or None."""
    homes = HOMES.get(item.target.split(".")[0])
    if homes is None or any(f"{item.module}.".startswith(f"{home}.") for home in homes):
        return None
    return f"{item}, which belongs in {' or '.join(homes)}"


def undeclared(items: list[Import], declared: set[str]) -> list[Import]:
    """The imports of libraries that none of the `declared` distributions provides."""
    provided_by = {name: [distribution] for name, distribution in OPTIONAL.items()} | dict(packages_distributions())
    known = {PACKAGE, *sys.stdlib_module_names}
    return [
        item
        for item in items
        if (name := item.target.split(".")[0]) not in known
        and not {normal(distribution) for distribution in provided_by.get(name, ())} & declared
    ]


def declared_distributions() -> set[str]:
    """The dependencies in pyproject.toml and in the extras that users may ask for."""
    project = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    return {normal(re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]) for line in project["dependencies"] + extras}


def normal(distribution: str) -> str:
    """The name as the registry compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def is_package(path: Path) -> bool:
    """Whether `path` is a folder with Python modules."""
    return path.is_dir() and any(path.glob("*.py"))
