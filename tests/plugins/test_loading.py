"""What is taken in as a plug-in, and what is refused: every mistake in one message, with what to do."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from tests.plugins.conftest import STRANGER

import fedelta
from fedelta.catalog import STRATEGIES, TUNING_METHODS
from fedelta.config import parse_config
from fedelta.errors import ConfigError, PluginError
from fedelta.plugins import blame, for_processes, loaded_files
from fedelta.settings import loading
from fedelta.strategies.fedavg import FedAvg

STRATEGY = """
from typing import Literal
from fedelta.strategies.fedavg import FedAvg

class Mine(FedAvg):
    name: Literal["mine"] = "mine"
"""
BASE: dict[str, Any] = {
    "model": {"source": "bundled:vit-micro"},
    "data": {"source": "digits"},
    "partition": {"name": "iid", "num_clients": 8},
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(content: str | bytes, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize(
    ("content", "problem", "advice"),
    [
        (
            "import nothing_like_it\n",
            "imported in line 1: ModuleNotFoundError",
            "install 'nothing_like_it'",
        ),
        (
            "x = 1\ny = x / 0\n",
            "imported in line 2: ZeroDivisionError: division by zero",
            "try it alone",
        ),
        ("def f(:\n", "is no Python: line 1: ", "try it alone"),
        (b"x = '\xff'\n", "is no Python: ", "try it alone"),
        (b"x = 1\x00\n", "is no Python: ", "try it alone"),
        ("import sys\nsys.exit(3)\n", "fails when it is imported in line 2: SystemExit: 3", "__main__"),
        (
            "class E(Exception):\n    def __str__(self):\n        return 1\nraise E\n",
            "line 4: E: (its message",
            "try it alone",
        ),
        ("raise KeyboardInterrupt\n", "fails when it is imported in line 1: KeyboardInterrupt", "__main__"),
        ("", "no public class in it has `apply` and `merge` (tuning method); ", "docs/plugins.md"),
        ("from fedelta.strategies.fedavg import FedAvg\n", "no public class in it has", "docs/plugins.md"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(write: Any, content: str | bytes, problem: str, advice: str):
    with pytest.raises(PluginError) as caught:
        fedelta.load_plugin(write(content))
    assert caught.value.message.startswith("plug-in 'mine.py' ")
    assert problem in caught.value.message
    assert advice in (caught.value.hint or "")


def test_a_file_that_is_not_there_or_is_no_python_is_refused(tmp_path: Path):
    with pytest.raises(PluginError, match=r"mine\.py' cannot be read: No such file"):
        fedelta.load_plugin(tmp_path / "mine.py")
    for path in (tmp_path, tmp_path / "mine.toml"):
        with pytest.raises(PluginError, match="is no Python file"):
            fedelta.load_plugin(path)


def test_the_command_ends_with_one_message_and_exit_code_two(write: Any, fedelta: Any):
    code, out, err = fedelta("list", "--plugin", write("import sys\nsys.exit()\n"))
    assert (code, out) == (2, "")
    assert err.count("error: ") == 1
    assert "Traceback" not in err


def test_what_a_plugin_prints_goes_to_standard_error(write: Any, capsys: pytest.CaptureFixture[str]):
    fedelta.load_plugin(write(f"print('hello')\n{STRATEGY}"))
    assert capsys.readouterr() == ("", "hello\n")


def test_nothing_is_written_beside_the_file(write: Any):
    path = write(STRATEGY)
    fedelta.load_plugin(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["mine.py"]


def test_a_file_may_be_given_twice_and_two_files_may_have_one_name(write: Any):
    first = write(STRATEGY)
    assert fedelta.load_plugin(first) == fedelta.load_plugin(first) == ["strategy.name = 'mine'"]
    kind = STRATEGIES["mine"]
    assert fedelta.load_plugin(write(STRATEGY.replace("ine", "ore"), "b/mine.py")) == ["strategy.name = 'more'"]
    assert STRATEGIES["mine"] is kind


def test_an_edited_file_replaces_its_earlier_version(write: Any):
    fedelta.load_plugin(write(STRATEGY))
    fedelta.load_plugin(write(STRATEGY.replace("ine", "ore")))
    assert "mine" not in STRATEGIES
    assert "more" in STRATEGIES
    with pytest.raises(PluginError):
        fedelta.load_plugin(write("x = 1 / 0"))
    assert "more" in STRATEGIES  # one that is broken does not


@pytest.mark.parametrize(
    ("content", "whose"),
    [
        (STRATEGY.replace("mine", "fedlama"), "is called 'fedlama', the name of a built-in strategy"),
        (STRATEGY.replace("mine", "damped"), "is called 'damped', the name of the strategy in plug-in 'stranger.py'"),
        (STRATEGY + STRATEGY.replace("Mine", "Other"), "is called 'mine' like `Mine`"),
        (STRANGER.read_text().replace('"scale"', '"combined"'), "is called 'combined', the name of a built-in tuning"),
    ],
)
def test_a_name_that_is_taken_is_refused_with_whose_it_is(write: Any, content: str, whose: str):
    fedelta.load_plugin(STRANGER)
    with pytest.raises(PluginError) as caught:
        fedelta.load_plugin(write(content))
    assert whose in caught.value.message


# What is wrong with a class, by what is changed in the stranger's file.
NAME = 'Literal["scale"] = "scale"'
BROKEN = {
    "no Settings": ("class Scale(Settings):", "class Scale:", "is not derived from `fedelta.Settings`"),
    "not frozen": (
        f"    name: {NAME}",
        f'    model_config = {{"frozen": False}}\n    name: {NAME}',
        "sets `frozen` to False in `model_config`, expected True",
    ),
    "no name": (f"    name: {NAME}\n", "", f"has no field `name`, expected `name: {NAME}`"),
    "no literal": (NAME, 'str = "scale"', "has a `name` that is no literal text"),
    "another default": (NAME, 'Literal["scale"] = "other"', "has 'other' as the default of `name`, expected 'scale'"),
    "no default": (NAME, 'Literal["scale"]', "has none as the default of `name`, expected 'scale'"),
    "odd name": (NAME, 'Literal["a+b"] = "a+b"', "is called 'a+b', expected a name of small letters"),
    "no merge": ("    def merge(", "    def _merge(", "lacks the method `merge(self, backbone)`"),
    "no apply": ("    def apply(", "    def aply(", "lacks the method `apply(self, backbone, lanes, generator)`"),
    "parameters": (
        "lanes: Lanes, generator: Generator) -> ParamSpec",
        "lanes: Lanes) -> ParamSpec",
        "has `apply(self, backbone, lanes)`, expected `apply(self, backbone, lanes, generator)`",
    ),
    "parameters by name only": (
        "lanes: Lanes, generator: Generator) -> ParamSpec",
        "lanes: Lanes, *, generator: Generator) -> ParamSpec",
        "has `apply(self, backbone, lanes, *, generator)`, expected `apply(self, backbone, lanes, generator)`",
    ),
    "one parameter too many": (
        "lanes: Lanes, generator: Generator) -> ParamSpec",
        "lanes: Lanes, generator: Generator, *, strength: float) -> ParamSpec",
        "has `apply(self, backbone, lanes, generator, *, strength)`, expected",
    ),
    "a static method": (
        "    def merge(self, backbone",
        "    @staticmethod\n    def merge(backbone",
        "has a staticmethod `merge`, expected the method `merge(self, backbone)`",
    ),
    "a coroutine": ("    def merge(", "    async def merge(", "has `merge` with `async` or `yield`, expected a method"),
    "no value": (
        "    max_lanes: ClassVar[int | None] = None\n",
        "",
        "lacks `max_lanes`: ",
    ),
    "a method for a value": (
        "    merges: ClassVar[bool] = True\n",
        "    def merges(self) -> bool:\n        return True\n\n",
        "has a method `merges`, expected a value; put `@property` above it",
    ),
    "a value of another type": (
        "merges: ClassVar[bool] = True",
        "merges: ClassVar[bool] = 'yes'",
        "has 'yes' as `merges`, expected bool",
    ),
    "a value that is no choice": (
        'reads: ClassVar[Reads] = "sum"',
        'reads: ClassVar[str] = "all"',
        "has 'all' as `reads`, expected 'sum' or 'each'",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_class_that_breaks_its_contract_is_refused(write: Any, broken: str):
    before, after, problem = BROKEN[broken]
    content = STRANGER.read_text()
    assert before in content
    with pytest.raises(PluginError) as caught:
        fedelta.load_plugin(write(content.replace(before, after, 1)))
    assert problem in caught.value.message
    assert "scale" not in TUNING_METHODS
    assert "damped" not in STRATEGIES  # all or none


def test_all_problems_are_in_one_message(write: Any):
    content = (
        STRANGER.read_text().replace("    def merge(", "    def _merge(").replace("    def update(", "    def _update(")
    )
    with pytest.raises(PluginError) as caught:
        fedelta.load_plugin(write(content))
    assert caught.value.message.count("\n  - ") == 2


# The client's side of a strategy has a `start`, as a mean has.
HELPER = """
class Controls:
    def start(self, spec):
        return {}
"""


def test_a_helper_class_with_a_method_of_a_kind_is_left_alone(write: Any):
    assert fedelta.load_plugin(write(HELPER + STRATEGY)) == ["strategy.name = 'mine'"]


def test_a_file_with_such_a_class_alone_is_told_what_it_lacks(write: Any):
    with pytest.raises(PluginError, match="`Controls`, a mean by its methods, is not derived"):
        fedelta.load_plugin(write(HELPER))


def test_a_class_beside_one_that_is_no_settings_is_checked_too(write: Any):
    mean = HELPER.replace("Controls:", 'Controls:\n    name = "controls"')
    with pytest.raises(PluginError, match="`Controls`, a mean by its methods, is not derived"):
        fedelta.load_plugin(write(mean + STRATEGY + HELPER.replace("Controls:", 'Other:\n    name = "controls"')))


def test_a_class_with_a_name_and_no_known_method_is_pointed_out(write: Any):
    content = (
        "from typing import Literal\nimport fedelta\nclass Odd(fedelta.Settings):\n    name: Literal['odd'] = 'odd'\n"
    )
    with pytest.raises(PluginError, match="`Odd` has a name, but none of the methods of a kind"):
        fedelta.load_plugin(write(content))
    assert fedelta.load_plugin(write(content.replace("Odd", "_Odd") + STRATEGY)) == ["strategy.name = 'mine'"]


def registered() -> type[FedAvg]:
    @fedelta.register
    class Cell(FedAvg):
        name: Literal["cell"] = "cell"

    return Cell


def test_a_class_made_in_python_is_registered_and_replaced_when_it_is_made_again():
    first = registered()
    assert STRATEGIES["cell"] is first
    assert parse_config({**BASE, "strategy": {"name": "cell"}}).strategy == first()
    second = registered()
    assert STRATEGIES["cell"] is second
    with pytest.raises(ConfigError, match=r"an object of Cell is no strategy"):
        parse_config({**BASE, "strategy": first()})


def test_an_object_of_a_class_that_is_not_registered_is_refused():
    class Stray(FedAvg):
        name: Literal["stray"] = "stray"

    with pytest.raises(ValueError, match=r"an object of Stray is no strategy .* `fedelta.register\(Stray\)`"):
        fedelta.Config(**{**BASE, "strategy": Stray()})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stands in for packages that are installed; each is a function that gives what its entry point names."""

    def install(**packages: Callable[[], object]) -> None:
        entries = [
            SimpleNamespace(dist=SimpleNamespace(name=name, version="1.0"), value=f"{name}.methods", load=load)
            for name, load in packages.items()
        ]
        loading.INSTALLED.is_done, loading.INSTALLED.broken = False, {}
        monkeypatch.setattr(metadata, "entry_points", lambda group: entries if group == "fedelta.plugins" else [])

    return install


class Offered(FedAvg):
    """What a package offers."""

    name: Literal["offered"] = "offered"


def broken() -> object:
    raise ImportError("no module 'heavy'")


def test_an_installed_plugin_is_found_by_its_entry_point(installed: Any):
    installed(good=lambda: Offered)
    assert parse_config({**BASE, "strategy": {"name": "offered"}}).strategy == Offered()
    assert STRATEGIES.provider_of("offered").label == "good 1.0"


def test_other_processes_load_files_only(installed: Any, write: Any):
    installed(good=lambda: Offered)
    registered()
    path = write(STRATEGY)
    fedelta.load_plugin(path)
    assert [argument.partition(":")[2] for argument in for_processes()] == [str(path)]
    assert [provider.label for provider in loaded_files()] == ["mine.py"]


def test_an_error_of_fedelta_raised_by_a_plugin_is_not_blamed_on_it(write: Any):
    fedelta.load_plugin(
        write(
            f"{STRATEGY}\n    def fail(self):\n        self.nested()\n\n    def nested(self):\n"
            "        raise self.error\n",
            "failing.py",
        )
    )
    failing = STRATEGIES["mine"]
    for error, named in ((ValueError("x"), "failed in `nested`, line"), (ConfigError(["y"]), None)):
        failing.error = error
        with pytest.raises(type(error)) as caught:
            failing().fail()
        blamed = blame(caught.value)
        assert (blamed is None) if named is None else (named in str(blamed))


def test_built_in_names_need_no_look_at_installed_plugins(installed: Any):
    installed(bad=broken)
    assert parse_config({**BASE, "tuning": {"name": "lora+bias"}}).tuning.names == "lora+bias"
    assert not loading.INSTALLED.is_done


def test_a_broken_installed_plugin_is_left_out_with_a_warning_and_explained_when_it_is_needed(
    installed: Any, caplog: pytest.LogCaptureFixture
):
    installed(bad=broken, good=lambda: Offered)
    assert "offered" in list(STRATEGIES)
    assert "plug-in bad 1.0 is left out: plug-in 'bad 1.0': `bad.methods` cannot be imported" in caplog.text
    with pytest.raises(ConfigError, match=r"installed plug-in that cannot be used: bad 1.0: .*no module 'heavy'"):
        parse_config({**BASE, "strategy": {"name": "heavy"}})
    assert caplog.text.count("left out") == 1
