"""The code on the pages: Python runs, settings are accepted, commands have the options that they are called with."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from manual.commands import commands
from tests.docs.pages import ROOT, Block, blocks

from fedelta.config import parse_config, read_table
from fedelta.deployment.site.settings import load_site
from fedelta.errors import ConfigError

# Its code belongs to a file, and its own test runs it: tests/plugins/test_docs.py, tests/test_readme.py.
ELSEWHERE = ("docs/plugins.md", "docs/python.md", "README.md")
TOML = [block for block in blocks("toml") if "[project." not in block.code]
DATA = '[data]\nsource = "digits"\n'
SHELL = blocks("sh")
PYTHON = blocks("python")


@pytest.mark.parametrize("block", [block for block in PYTHON if block.note], ids=str)
def test_code_that_needs_more_than_is_here_is_at_least_python(block: Block):
    assert block.note == "no-run"
    compile(block.code, block.page, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON if not block.note} - {*ELSEWHERE}))
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(block.code for block in PYTHON if block.page == page and not block.note)
    exec(compile(code, page, "exec"), {})


@contextmanager
def absent_files() -> Iterator[None]:
    """Accepts that what a reader has to bring is not here, and nothing else."""
    try:
        yield
    except ConfigError as error:
        if not all(re.search("does not exist|is not a directory", text) for text in error.problems):
            raise


@pytest.mark.parametrize("block", TOML, ids=str)
def test_the_settings_of_a_page_are_accepted(block: Block, tmp_path: Path):
    content = tomllib.loads(block.code)
    if block.note == "site.toml":
        (tmp_path / "site.toml").write_text(
            "".join(['name = "north"\n', "" if "data" in content else DATA, block.code])
        )
        with absent_files():
            load_site(tmp_path)
        return
    table = read_table(ROOT / "recipes" / "demo.toml")
    for section, keys in content.items():
        # A section with a name stands for itself, one without adds to what is there.
        whole = not isinstance(keys, dict) or "name" in keys
        table[section] = keys if whole else table.get(section, {}) | keys
    with absent_files():
        parse_config(table, (), origin=block.page)


def lines_of(block: Block) -> list[list[str]]:
    """The words of each command of a block."""
    joined = re.sub(r"\\\n\s*", " ", block.code)
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def calls(program: str) -> Iterator[tuple[str, list[str]]]:
    for block in SHELL:
        for words in lines_of(block):
            name = words[0].removeprefix(".venv/bin/")
            if name == program:
                yield block.page, words[1:]


FEDELTA = list(dict.fromkeys((page, tuple(words)) for page, words in calls("fedelta")))


def split_call(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The name of the command and its arguments."""
    return (" ".join(words[:2]), words[2:]) if words[0] in ("server", "site") else (words[0], words[1:])


def test_every_command_of_the_pages_has_the_options_that_it_is_called_with():
    assert len(FEDELTA) > 50, "the pattern finds few commands"
    known, problems = commands(), []
    for page, words in FEDELTA:
        name, arguments = split_call(words)
        if words[0].startswith("--"):
            continue
        if name not in known:
            problems.append(f"{page}: fedelta {name}")
            continue
        options = {option for parameter in known[name].params for option in parameter.opts + parameter.secondary_opts}
        problems += [
            f"{page}: fedelta {name} {word}"
            for word in arguments
            if word.startswith("--") and word.partition("=")[0] not in {*options, "--help"}
        ]
    assert not problems


@pytest.mark.parametrize("page", sorted({page for page, _ in FEDELTA}))
def test_the_recipes_of_a_page_take_its_overrides(page: str):
    for words in [words for owner, words in FEDELTA if owner == page]:
        recipe = next((word for word in words if word.endswith(".toml") and word.startswith("recipes/")), None)
        if recipe is None or "--plugin" in words or recipe == "recipes/NAME.toml":
            continue
        given = [value for option, value in itertools.pairwise(words) if option == "--set"]
        over = [value for option, value in itertools.pairwise(words) if option == "--over"]
        # Placeholders wait for the reader's own: tuning.name=METHOD.
        overrides = [text for text in given if not re.search(r"=[A-Z]{2,}$", text) and not text.startswith("compare.")]
        overrides += [f"{key}={value.split(',')[0]}" for key, _, value in (text.partition("=") for text in over)]
        with absent_files():
            parse_config(read_table(ROOT / recipe), overrides, origin=f"{page}: {' '.join(words)}")


def test_every_program_and_target_that_a_page_calls_is_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for page, words in calls("make"):
        for word in words:
            assert word in targets or "=" in word or word.startswith("-"), (page, word)
    for page, words in calls("python"):
        name = words[1].replace(".", "/") if words[0] == "-m" else words[0].removesuffix(".py")
        if words[0] == "-m" and name.partition("/")[0] not in ("benchmarks", "pretraining"):
            continue
        assert any((ROOT / place).exists() for place in (f"{name}.py", f"{name}/__main__.py")), (page, words)
