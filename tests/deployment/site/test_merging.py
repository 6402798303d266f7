"""What a recipe decides at a site, and what it does not."""

from __future__ import annotations

import os
import tomllib

import pytest
from tests.small import SMALL

from fedelta.config import Config, parse_config
from fedelta.deployment.site.merging import merged
from fedelta.deployment.site.settings import SiteSettings, parse_site
from fedelta.errors import ConfigError, InputError
from fedelta.models import bundles

REST = SMALL[SMALL.index("[tuning]") :]


def site(tmp_path, **table: object) -> SiteSettings:
    return parse_site({"name": "a", "clients": "0-2", "data": {"source": "digits"}} | table, tmp_path)


def with_model(section: str) -> str:
    return f"seed = 3\n[model]\n{section}\n{REST}"


def test_a_site_reads_its_own_data_whatever_the_recipe_says(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n")
    own = site(tmp_path, data={"source": "rows.csv", "label_column": "kind"})
    config = merged(SMALL.replace('"digits"', '"/etc/passwd"\ntest_source = "/etc/shadow"'), own)
    assert config.data.source == str(tmp_path / "rows.csv")
    assert (config.data.test_source, config.data.label_column) == (None, "kind")


def test_how_rows_are_treated_is_the_recipes_unless_the_site_says_it(tmp_path):
    recipe = SMALL.replace("max_test_examples = 60", "max_test_examples = 60\nmax_length = 7")
    assert merged(recipe, site(tmp_path)).data.max_length == 7
    assert merged(recipe, site(tmp_path)).data.max_train_examples == 120
    own = site(tmp_path, data={"source": "digits", "max_length": 9, "max_train_examples": 50})
    assert merged(recipe, own).data.max_length == 9
    assert merged(recipe, own).data.max_train_examples == 50


def test_limits_of_all_rows_together_say_nothing_of_data_of_the_sites_own(tmp_path):
    assert merged(SMALL, site(tmp_path, clients=None)).data.max_train_examples is None


def test_only_a_site_with_clients_of_the_partition_divides_as_the_recipe_does(tmp_path):
    assert merged(SMALL, site(tmp_path)).partition.name == "dirichlet"
    assert merged(SMALL, site(tmp_path, clients=None)).partition.name == "iid"


def test_everything_that_is_trained_is_as_the_recipe_says(tmp_path):
    config = merged(SMALL, site(tmp_path, clients=None))
    recipe = Config.model_fields.keys() - {"data", "partition", "model", "runtime"}
    original = parse_config(tomllib.loads(SMALL))
    assert {key for key in recipe if getattr(config, key) != getattr(original, key)} == set()


def test_the_machine_is_used_as_the_site_says(tmp_path):
    recipe = SMALL + '\n[runtime]\nlanes = 1\ncompute_dtype = "bfloat16"\ncache_mib = 1\n'
    config = merged(recipe, site(tmp_path, runtime={"lanes": 2, "cache_mib": 5}))
    assert (config.runtime.lanes, config.runtime.cache_mib, config.runtime.compute_dtype) == (2, 5, "bfloat16")


@pytest.mark.parametrize("source", ["/etc", "google/vit-base-patch16-224"])
def test_weights_from_elsewhere_are_refused_if_the_site_has_none(tmp_path, source):
    with pytest.raises(ConfigError, match="which this site does not have") as raised:
        merged(with_model(f'source = "{source}"'), site(tmp_path))
    assert "`[model] source`" in str(raised.value.hint)


def test_weights_come_from_the_place_that_the_site_names(tmp_path):
    (tmp_path / "weights").mkdir()
    own = site(tmp_path, model={"source": "weights"})
    assert merged(with_model('source = "/elsewhere"'), own).model.source == str(tmp_path / "weights")
    assert merged(with_model('source = "bundled:vit-micro"'), own).model.source == "bundled:vit-micro"


def test_no_other_path_of_a_recipe_is_read(tmp_path):
    recipe = with_model('source = "bundled:vit-micro"\nadapter = "/etc"')
    config = merged(f'{recipe}\n[exits]\ntiers_file = "/etc/passwd"\n', site(tmp_path))
    assert (config.model.adapter, config.exits.tiers_file) == (None, None)


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ("seed = ", "1 problem in the recipe of the server:\n  - is not TOML"),
        (SMALL.replace("seed = 3", "sead = 3"), "`sead` is unknown; did you mean `seed`"),
        (SMALL.replace('"fedavg"', '"fedmine"'), "`strategy.name` is 'fedmine', expected one of"),
        ("model = 3", "`model`"),
        ("", "section `\\[model\\]` is missing"),
    ],
)
def test_a_recipe_that_this_version_does_not_know_is_refused(tmp_path, recipe, problem):
    with pytest.raises(ConfigError, match=problem):
        merged(recipe, site(tmp_path))


def test_another_task_than_the_sites_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"`task.name` is 'classification', expected 'regression'"):
        merged(SMALL, site(tmp_path, task={"name": "regression"}))
    named = {"name": "classification", "focal_gamma": 2.0}
    with pytest.raises(InputError, match=r"settings: `task.focal_gamma` is 0.0, expected 2.0\."):
        merged(SMALL, site(tmp_path, task=named))


def test_what_a_site_does_not_say_of_its_task_is_the_recipes(tmp_path):
    recipe = f'{SMALL}\n[task]\nname = "classification"\nfocal_gamma = 2.0\n'
    assert merged(recipe, site(tmp_path, task={"name": "classification"})).task.focal_gamma == 2.0


@pytest.mark.parametrize("up", [False, True], ids=["from the root", "upwards"])
def test_no_name_of_a_bundled_model_leads_to_another_folder_of_the_site(tmp_path, up: bool):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    path = os.path.relpath(weights, bundles.__file__.replace("bundles.py", "bundled")) if up else str(weights)
    with pytest.raises(ConfigError, match="there is no bundled backbone"):
        merged(with_model(f'source = "bundled:{path}"'), site(tmp_path))
