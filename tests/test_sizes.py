"""How large functions, files and constructors may be: read from the source with `ast`.

A constructor is that of a dataclass, or an `__init__`. Settings and named tuples do not count: the fields of settings
are the keys of a configuration, and there are as many as an algorithm has.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"

MAX_FUNCTION_LINES = 50
MAX_FILE_LINES = 400
MAX_ARGUMENTS = 6  # of 90 % of all constructors
SHARE = 0.9

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Size:
    """How large something is: `size` lines or arguments of what stands at `place`."""

    place: str
    size: int

    def __str__(self) -> str:
        return f"{self.place}: {self.size}"


def test_functions_are_short():
    sizes = [size for name, source in sources().items() for size in function_lines(name, source)]
    too_long = larger(sizes, MAX_FUNCTION_LINES)
    assert not too_long, said(f"functions of more than {MAX_FUNCTION_LINES} lines; split them", too_long)


def test_files_are_short():
    sizes = [Size(name, len(source.splitlines())) for name, source in sources().items()]
    too_long = larger(sizes, MAX_FILE_LINES)
    assert not too_long, said(f"files of more than {MAX_FILE_LINES} lines; split them", too_long)


def test_nine_of_ten_constructors_take_few_arguments():
    sizes = [size for name, source in sources().items() for size in constructor_arguments(name, source)]
    percentile, too_many = nearest_rank([size.size for size in sizes], SHARE), larger(sizes, MAX_ARGUMENTS)
    assert percentile <= MAX_ARGUMENTS, said(
        f"{SHARE:.0%} of {len(sizes)} constructors take up to {percentile} arguments, expected {MAX_ARGUMENTS} or "
        f"fewer; group those that belong together in one of these {len(too_many)}",
        too_many,
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    return 1", {"m, line 1, f": 2}),
        ("def f(\n    x,\n):\n    '''Text.'''\n\n    return x\n\n", {"m, line 1, f": 6}),
        ("class C:\n    @property\n    def f(self):\n        return 1", {"m, line 3, f": 2}),  # less its decorators
        ("def f():\n    async def g():\n        pass\n    return g", {"m, line 1, f": 4, "m, line 2, g": 2}),
    ],
)
def test_lines_of_functions_are_counted(source: str, expected: dict[str, int]):
    assert {size.place: size.size for size in function_lines("m", source)} == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("@dataclass\nclass C:\n    a: int\n    b: int = 0", [2]),
        ("@dataclass(frozen=True)\nclass C:\n    a: int\n    b: ClassVar[int] = 0\n    c = 1", [1]),
        ("@dataclass\nclass C:\n    a: int\n    b: int = field(init=False)\n    c: int = field(default=0)", [2]),
        ("@dataclasses.dataclass\nclass C:\n    a: int", [1]),
        ("class C:\n    def __init__(self, a, /, b, *c, d=1, **e):\n        pass", [5]),
        ("def f():\n    class C:\n        def __init__(self): pass", [0]),
        ("class C(Settings):\n    a: int = 0", []),
        ("class C(NamedTuple):\n    a: int", []),
        ("class C(Protocol):\n    def run(self, a): ...", []),
    ],
)
def test_arguments_of_constructors_are_counted(body: str, expected: list[int]):
    assert [size.size for size in constructor_arguments("m", body)] == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([5], 5), ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 9), ([3, 2, 1], 3), ([1] * 18 + [9, 9], 1), ([1] * 17 + [9] * 3, 9)],
)
def test_the_percentile_is_the_value_at_the_nearest_rank(values: list[int], expected: int):
    assert nearest_rank(values, 0.9) == expected


def sources() -> dict[str, str]:
    """The text of every module, by its path."""
    return {str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}


def function_lines(name: str, source: str) -> Iterator[Size]:
    """The lines of every function in `source`, at any depth, from its `def` to its end."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            yield Size(f"{name}, line {node.lineno}, {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)


def constructor_arguments(name: str, source: str) -> Iterator[Size]:
    """The arguments of every constructor that `source` defines, `self` left out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and (count := _arguments(node)) is not None:
            yield Size(f"{name}, line {node.lineno}, {node.name}", count)


def _arguments(node: ast.ClassDef) -> int | None:
    """How many the constructor takes; None for a class that defines none."""
    for part in node.body:
        if isinstance(part, Function) and part.name == "__init__":
            taken = part.args
            named = len(taken.posonlyargs + taken.args + taken.kwonlyargs) - 1
            return named + (taken.vararg is not None) + (taken.kwarg is not None)
    if not any(ast.unparse(item).split("(")[0].split(".")[-1] == "dataclass" for item in node.decorator_list):
        return None
    return sum(_is_argument(part) for part in node.body if isinstance(part, ast.AnnAssign))


def _is_argument(part: ast.AnnAssign) -> bool:
    kept_out = part.value is not None and "init=False" in ast.unparse(part.value)
    return not kept_out and "ClassVar" not in ast.unparse(part.annotation)


def nearest_rank(values: Sequence[int], share: float) -> int:
    """The smallest of `values` that at least this share of them does not exceed."""
    return sorted(values)[math.ceil(round(share * len(values), 9)) - 1]


def larger(sizes: Sequence[Size], limit: int) -> list[Size]:
    """Those above the limit, the largest first."""
    return sorted((size for size in sizes if size.size > limit), key=lambda size: (-size.size, size.place))


def said(problem: str, offenders: Sequence[Size]) -> str:
    """The message of a check that failed."""
    return f"{problem}:\n" + "\n".join(f"  - {size}" for size in offenders)
