"""Runs the cells of a notebook from top to bottom and puts their outputs in place: `python notebooks/execute.py FILE`.

Cells are plain Python, without magics, and run in this process: no kernel, no socket. An output is what a cell prints,
the value of its last line, and its figures.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

# Any, in this file: JSON values, and the values of a cell.
Cell = dict[str, Any]


def executed(notebook: Cell) -> Cell:
    """The notebook with the outputs of all its cells.

    Raises:
        Exception: whatever a cell raises.
    """
    import matplotlib as mpl

    mpl.use("agg")
    values: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        count += 1
        cells.append({**cell, "execution_count": count, "outputs": _outputs("".join(cell["source"]), values, count)})
    return {**notebook, "cells": cells}


def _outputs(source: str, values: dict[str, Any], count: int) -> list[Cell]:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {count}", "exec"), values)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), values)
    outputs: list[Cell] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if figures := _figures():
        return outputs + figures
    if value is not None:
        shown = {"text/plain": _lines(repr(value))}
        outputs.append({"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": shown})
    return outputs


def _figures() -> list[Cell]:
    """The open figures as pictures, which are then closed."""
    from matplotlib import pyplot

    pictures = []
    for number in pyplot.get_fignums():
        content = io.BytesIO()
        pyplot.figure(number).savefig(content, format="png", dpi=72, bbox_inches="tight", metadata={"Software": None})
        picture = base64.b64encode(content.getvalue()).decode()
        pictures.append({"output_type": "display_data", "metadata": {}, "data": {"image/png": picture}})
    pyplot.close("all")
    return pictures


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        whole = executed(json.loads(Path(name).read_text(encoding="utf-8")))
        Path(name).write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
