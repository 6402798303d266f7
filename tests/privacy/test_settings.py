"""Section `[privacy]`: what contradicts a guarantee is said before anything is read or trained."""

from __future__ import annotations

import tomllib

import pytest

from fedelta.aggregation.means import Uniform, Weighted
from fedelta.config import Config, parse_config
from fedelta.errors import ConfigError

SMALLEST = {
    "model": {"architecture": {"model_type": "vit"}},
    "data": {"source": "digits"},
    "partition": {"name": "iid", "num_clients": 16},
}
FIVE = "privacy.target_epsilon=5"


def problems_of(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(SMALLEST, overrides)
    return caught.value.problems


# (overrides, part of the one problem)
CONTRADICTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "a key without a unit": (
        (FIVE,),
        (
            "`privacy.target_epsilon` is set, but `privacy.unit` is 'none', so that nothing is protected; set it to "
            "'example', 'client' or 'local'"
        ),
    ),
    "keys without a unit": (
        (FIVE, "privacy.clipping_norm=2.0"),
        "`privacy.target_epsilon`, `privacy.clipping_norm` are set, but `privacy.unit` is 'none'",
    ),
    "a unit without strength": (
        ("privacy.unit=example",),
        (
            "`privacy.unit` is 'example', but neither `privacy.target_epsilon` nor `privacy.noise_multiplier` is "
            "set; give the epsilon that the run may reach, or its noise"
        ),
    ),
    "an epsilon of zero": (
        ("privacy.unit=client", "privacy.target_epsilon=0"),
        "`privacy.target_epsilon` is 0, expected: greater than 0",
    ),
    "a negative epsilon": (
        ("privacy.unit=client", "privacy.target_epsilon=-1.5"),
        "`privacy.target_epsilon` is -1.5, expected: greater than 0",
    ),
    "a delta of one": (
        ("privacy.unit=client", FIVE, "privacy.target_delta=1.0"),
        "`privacy.target_delta` is 1.0, expected: less than 1",
    ),
    "noise and a target": (
        ("privacy.unit=client", FIVE, "privacy.noise_multiplier=1.0"),
        (
            "`privacy`: give `target_epsilon`, from which the noise is calculated, or `noise_multiplier`, not both; "
            "a run with a given noise ends before an epsilon with `max_epsilon`"
        ),
    ),
    "two limits": (
        ("privacy.unit=client", FIVE, "privacy.max_epsilon=4.0"),
        (
            "`privacy.max_epsilon` and `privacy.target_epsilon` are both set, but the noise that is calculated for a "
            "target keeps all rounds within it; remove `max_epsilon`, or replace the target by `noise_multiplier`"
        ),
    ),
    "adaptive clipping of examples": (
        ("privacy.unit=example", FIVE, "privacy.clipping=adaptive"),
        (
            "`privacy.clipping` is 'adaptive', which counts the clients of a round whose norm is below the clipping "
            "norm: only for `privacy.unit` = 'client', not 'example'; use 'flat' or 'per-group'"
        ),
    ),
    "a quantile without adaptive clipping": (
        ("privacy.unit=client", FIVE, "privacy.target_quantile=0.9"),
        "`privacy.target_quantile` is set, but only `privacy.clipping` = 'adaptive' uses it, not 'flat'",
    ),
    "count noise without adaptive clipping": (
        ("privacy.unit=local", FIVE, "privacy.count_noise=2.0"),
        "`privacy.count_noise` is set, but only `privacy.clipping` = 'adaptive' uses it, not 'flat'",
    ),
    "banded noise at clients": (
        ("privacy.unit=local", FIVE, "privacy.mechanism=banded"),
        (
            "`privacy.mechanism` is 'banded', which is noise of the server: only for `privacy.unit` = 'client', not "
            "'local'"
        ),
    ),
    "bands without banded noise": (
        ("privacy.unit=client", FIVE, "privacy.bands=8"),
        "`privacy.bands` is set, but only `privacy.mechanism` = 'banded' uses it, not 'gaussian'",
    ),
    "banded noise with a moving norm": (
        ("privacy.unit=client", FIVE, "privacy.mechanism=banded", "privacy.clipping=adaptive"),
        (
            "`privacy.clipping` is 'adaptive', but the noise of `privacy.mechanism` = 'banded' is for one clipping "
            "norm in all rounds; use 'flat' or 'per-group'"
        ),
    ),
    "banded noise for cohorts that are drawn": (
        ("privacy.unit=client", FIVE, "privacy.mechanism=banded", "strategy.sampling=poisson"),
        (
            "`strategy.sampling` is 'poisson', but the noise of `privacy.mechanism` = 'banded' is for clients that "
            "take turns; use 'cyclic'"
        ),
    ),
    "banded noise for cohorts that stay": (
        ("privacy.unit=client", FIVE, "privacy.mechanism=banded", "strategy.name=fedlama", "strategy.phi=2"),
        (
            "`strategy.name` is 'fedlama', whose cohorts stay for 2 rounds, but the noise of `privacy.mechanism` = "
            "'banded' is for clients that wait from one round to their next; use 'fedavg'"
        ),
    ),
    "FedPEFT's noise at the server": (
        ("privacy.unit=client", FIVE, "privacy.mechanism=fedpeft-code"),
        (
            "`privacy.mechanism` is 'fedpeft-code', which is noise of local steps: only for `privacy.unit` = "
            "'example', not 'client'"
        ),
    ),
    "FedPEFT's noise without its epsilon": (
        ("privacy.unit=example", "privacy.noise_multiplier=1.0", "privacy.mechanism=fedpeft-text"),
        (
            "`privacy.mechanism` is 'fedpeft-text', whose noise follows from `privacy.target_epsilon` and "
            "`privacy.target_delta`; give the target instead of `privacy.noise_multiplier`"
        ),
    ),
    "FedPEFT's noise with our clipping": (
        ("privacy.unit=example", FIVE, "privacy.mechanism=fedpeft-code", "privacy.clipping=per-group"),
        (
            "`privacy.mechanism` is 'fedpeft-code', which has its own way to clip, but `privacy.clipping` is "
            "'per-group'; use 'flat'"
        ),
    ),
    "weights by examples": (
        ("privacy.unit=client", FIVE, "strategy.mean.name=weighted"),
        (
            "`strategy.mean.name` is 'weighted', but how much one client changes it has no limit, as `privacy.unit` = "
            "'client' needs; use 'uniform', in which all clients count the same"
        ),
    ),
    "a median": (
        ("privacy.unit=client", FIVE, "strategy.mean.name=median"),
        "`strategy.mean.name` is 'median', but how much one client changes it has no limit",
    ),
    "FedNova": (
        ("privacy.unit=client", FIVE, "strategy.name=fednova"),
        (
            "`strategy.name` is 'fednova', for which no limit is known of how much one client changes the result, as "
            "`privacy.unit` = 'client' needs; 'fedavg' has one"
        ),
    ),
    "void rounds": (
        ("privacy.unit=client", FIVE, "strategy.min_replies=2"),
        (
            "`strategy.min_replies` is 2, but with `privacy.unit` = 'client' every round counts, because a void one "
            "would tell who was there; remove the key"
        ),
    ),
    "an end by bytes": (
        ("privacy.unit=client", FIVE, "byte_budget_mib=3"),
        (
            "`byte_budget_mib` is set, but with `privacy.unit` = 'client' the bytes of a round tell how many "
            "clients were there; remove the key and set `strategy.num_rounds`"
        ),
    ),
    "more clients in a cohort than there are": (
        ("privacy.unit=client", FIVE, "strategy.clients_per_round=17"),
        "`strategy.clients_per_round` is 17, more than `partition.num_clients` = 16",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_explained(name: str):
    overrides, problem = CONTRADICTIONS[name]
    (only,) = problems_of(*overrides)
    assert only.startswith(problem)


def test_all_contradictions_are_in_one_message():
    problems = problems_of("privacy.unit=client", "strategy.mean.name=weighted", "strategy.min_replies=2")
    keys = ("privacy.unit", "strategy.mean.name", "strategy.min_replies")
    assert [problem[: len(key) + 2] for problem, key in zip(problems, keys, strict=True)] == [
        f"`{key}`" for key in keys
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ("privacy.unit=example", "strategy.name=fednova", "strategy.min_replies=2", "byte_budget_mib=3"),
        ("privacy.unit=local", "strategy.mean.name=median", "strategy.sampling=poisson"),
        ("privacy.unit=client", "privacy.clipping=adaptive", "privacy.target_quantile=0.9", "strategy.name=scaffold"),
        ("privacy.unit=client", "privacy.mechanism=banded", "privacy.bands=8", "strategy.sampling=cyclic"),
        ("privacy.unit=client", "strategy.sampling=fixed", "strategy.name=fedlama"),
        ("privacy.unit=example", "privacy.mechanism=fedpeft-code"),
    ],
)
def test_what_a_unit_can_do_is_accepted(overrides: tuple[str, ...]):
    config = parse_config(SMALLEST, (FIVE, *overrides))
    assert config.privacy.is_on
    assert parse_config(tomllib.loads(config.to_toml())) == config


def test_the_defaults_of_a_run_without_privacy_can_be_read_back():
    config = parse_config(tomllib.loads(parse_config(SMALLEST).to_toml()))
    assert not config.privacy.is_on
    assert isinstance(config.strategy.mean, Weighted)
    assert config.strategy.sampling == "fixed"


@pytest.mark.parametrize(("mechanism", "sampling"), [("gaussian", "poisson"), ("banded", "cyclic")])
def test_a_strategy_that_is_not_told_samples_and_weights_as_clients_need_it(mechanism: str, sampling: str):
    config = parse_config(SMALLEST, ("privacy.unit=client", FIVE, f"privacy.mechanism={mechanism}"))
    assert config.strategy.sampling == sampling
    assert isinstance(config.strategy.mean, Uniform)


def test_a_configuration_made_in_python_is_checked_too():
    sections = parse_config(SMALLEST, ("privacy.unit=client", FIVE))
    assert Config(**{name: getattr(sections, name) for name in Config.model_fields}) == sections
