"""The page about the architecture says what is so: which files a round opens, and what the floors are."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType

import pytest
from tests.small import write_small
from tests.test_layers import LAYERS

import fedelta
from fedelta.experiment import Experiment
from fedelta.federation.rounds import Standing, federate

SOURCE = Path(fedelta.__file__).parent
# Not followed: the words that everything uses, and what lies behind the engine's door.
VOCABULARY = {"params.py", "seeds.py"}
DOOR = "engine/lanes.py"


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "architecture.md").read_text(encoding="utf-8")


def opened_by_a_round(folder: Path) -> set[str]:
    """Files of the package that the second round of a run calls into, from the loop to the engine's door."""
    assembly = Experiment.from_toml(write_small(folder), ["evaluate_every=3"]).assembly
    rounds = federate(
        assembly.federation, Standing(assembly.params, assembly.strategy.init(assembly.params, assembly.spec))
    )
    next(rounds)
    opened: set[str] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and (name := file_of(frame)) is not None and not behind_the_door(frame):
            opened.add(name)

    sys.setprofile(note)
    try:
        next(rounds)
    finally:
        sys.setprofile(None)
    return {DOOR if name.startswith("engine/") else name for name in opened} - VOCABULARY


def file_of(frame: FrameType) -> str | None:
    path = Path(frame.f_code.co_filename)
    return path.relative_to(SOURCE).as_posix() if path.is_relative_to(SOURCE) else None


def behind_the_door(frame: FrameType) -> bool:
    """Whether some caller of the frame is in the engine."""
    caller = frame.f_back
    while caller is not None:
        if (file_of(caller) or "").startswith("engine/"):
            return True
        caller = caller.f_back
    return False


def test_a_round_opens_the_files_of_the_list_and_no_other(page: str, tmp_path: Path):
    listed = re.findall(r"^\d+\. `([\w/]+\.py)`", page, flags=re.MULTILINE)
    assert len(listed) <= 10
    assert opened_by_a_round(tmp_path) == set(listed)


def test_every_file_and_function_that_the_page_names_is_there(page: str):
    for name in set(re.findall(r"`([\w/]+\.py)", page.replace("NAME.py", ""))):
        assert (SOURCE / name).exists() or (SOURCE.parents[1] / name).exists(), name
    for file, function in re.findall(r"^\d+\. `([\w/]+\.py)`: `(\w+)", page, flags=re.MULTILINE):
        assert re.search(rf"^\s*(def|class) {function}\b", (SOURCE / file).read_text(), flags=re.MULTILINE), function


def test_the_floors_of_the_page_are_those_that_are_checked(page: str):
    drawing = page.split("```")[1]
    floors = [set(re.split(r"\s{3,}", line.strip())[0].split()) for line in drawing.strip().splitlines()]
    assert floors == [set(layer) - {"__main__"} for layer in reversed(LAYERS)]
