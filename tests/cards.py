"""The code in a model card, run as by somebody who has downloaded the adapter."""

from __future__ import annotations

import io
import os
import re
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any


def executed(adapter: Path, place: Path, base: str | Path = "", **known: Any) -> list[tuple[str, dict[str, Any]]]:
    """Runs each block of code in the card of `adapter`; returns what each printed, and its names.

    Args:
        adapter: directory.
        place: where files such as `image.png` are, which the code reads.
        base: directory of the base model.
        known: names that the code expects.
    """
    text = (adapter / "README.md").read_text()
    assert str(Path.home()) not in text
    assert os.fspath(adapter.parent) not in text
    results = []
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        placed = code.replace("path/of/this/directory", str(adapter)).replace("path/of/the/base/model", str(base))
        scope, said = dict(known), io.StringIO()
        with redirect_stdout(said), chdir(place):
            exec(placed, scope)
        results.append((said.getvalue().strip(), scope))
    return results
