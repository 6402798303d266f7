"""The catalog against the classes that it names, and against what a walk through the configuration finds."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.plugins.conftest import own_registries

from fedelta.catalog import ALL, TUNING_METHODS
from fedelta.choices import choices
from fedelta.config import Config
from fedelta.data.files import NAMES
from fedelta.settings import Settings
from fedelta.settings.explain import named_choices
from fedelta.settings.registry import Registry, imported, names_of


@pytest.mark.parametrize("registry", ALL, ids=lambda registry: registry.kind.noun)
def test_each_name_selects_the_class_with_that_name(registry: Registry):
    for name, kind in registry.items():
        assert issubclass(kind, Settings)
        assert name in names_of(kind)
    imported(registry.kind.protocol)


def test_the_list_names_what_a_walk_through_the_configuration_finds():
    with own_registries():
        by_name = {key: [*names] for key, names in named_choices(Config).items()}
        by_name["tuning.name"] = [*TUNING_METHODS, "several joined by +"]  # what `combined` stands for
        listed = choices()
    assert {key: names for key, names in listed.items() if key.endswith(".name")} == by_name


def test_the_list_names_all_embedded_data():
    listed = choices()["data.source"]
    assert {name for name in listed if " " not in name} == NAMES


def test_the_list_needs_neither_torch_nor_transformers():
    code = "import sys, fedelta.choices as c; c.choices(); print({'torch', 'transformers', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
