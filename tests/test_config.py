"""Configurations: every problem in one message, overrides, and that what is written is what is read."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path

import pytest
from tests.pairs import pairwise

from fedelta.catalog import MEANS, TUNING_METHODS
from fedelta.codecs.cast import Cast
from fedelta.config import Config, load_config, parse_config
from fedelta.engine.optimizers import AdamW, Sgd
from fedelta.errors import ConfigError
from fedelta.settings.explain import named_choices
from fedelta.strategies.local import FedProx
from fedelta.tuning.head import Head
from fedelta.tuning.lora import Lora

STRATEGIES = ", ".join(named_choices(Config)["strategy.name"])

# Any other type of value in a table of the test would be a type of TOML.
Table = dict[str, object]

METHODS = "full, accumulator, exit-heads, head, prompt, adapter, parallel, lora, bias, combined"


def table(**sections: object) -> Table:
    """The smallest configuration, some sections replaced."""
    smallest = {
        "model": {"architecture": {"model_type": "vit"}},
        "data": {"source": "digits"},
        "partition": {"name": "iid", "num_clients": 16},
    }
    return smallest | sections


def problems_of(config: Table, overrides: tuple[str, ...] = ()) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(config, overrides)
    return caught.value.problems


def test_the_smallest_configuration_takes_every_default():
    config = parse_config(table())
    assert (config.seed, config.evaluate_every, config.byte_budget_mib) == (0, 1, None)
    assert config.tuning == Lora()
    assert (config.strategy.clients_per_round, config.strategy.num_rounds) == (8, 50)
    assert (config.codec.down, config.codec.up) == (Cast(), Cast())


def test_a_file_is_read(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text(
        'seed = 7\n[model]\narchitecture = {model_type = "vit"}\n[data]\nsource = "digits"\n'
        '[partition]\nname = "iid"\nnum_clients = 16\n[tuning]\nname = "lora"\nr = 2\ntarget_modules = ["q", "k"]\n'
        '[client]\nlr = 1\noptimizer = {name = "adamw", beta1 = 0.5}\n'
    )
    config = load_config(path)
    assert config.seed == 7
    assert config.tuning == Lora(r=2, target_modules=("q", "k"))
    assert config.client.optimizer == AdamW(beta1=0.5)
    assert config.client.lr == 1.0


def test_all_problems_are_in_one_message():
    wrong = table(
        seed=-1,
        partition={"name": "dirichlet", "num_clients": 4, "alpha": 0.0},
        strategy={"clients_per_rond": 8},
        client={"lr": "fast", "batch_size": 0},
        codec={"name": "flot16"},
        tuning={"name": "lora", "r": 2.5},
        stratgy={},
    )
    del wrong["data"]
    with pytest.raises(ConfigError) as caught:
        parse_config(wrong, origin="run.toml")
    assert str(caught.value) == (
        "9 problems in run.toml:\n"
        "  - `partition.alpha` is 0.0, expected: greater than 0\n"
        "  - `seed` is -1, expected: greater than or equal to 0\n"
        "  - `strategy.clients_per_rond` is unknown; did you mean `strategy.clients_per_round`?\n"
        "  - `client.batch_size` is 0, expected: greater than or equal to 1\n"
        "  - `client.lr` is 'fast', expected: a number\n"
        "  - `codec.name` is 'flot16', expected one of float32, float16, bfloat16, int8, int4, sign, "
        "top-k, random-k; did you mean 'float16'?\n"
        "  - `tuning.r` is 2.5, expected: a whole number\n"
        "  - `stratgy` is unknown; did you mean `strategy`?\n"
        "  - section `[data]` is missing\n"
        "hint: `fedelta list` names what can be chosen; `--plugin FILE` adds methods of your own."
    )


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (
            {"tuning": {"name": "loar"}},
            f"`tuning.name` is 'loar', expected one of {METHODS}; did you mean 'lora'?",
        ),
        (
            {"tuning": {"name": "xyz"}},
            f"`tuning.name` is 'xyz', expected one of {METHODS}",
        ),
        (
            {"tuning": {"r": 2}},
            f"`tuning.name` is missing, expected one of {METHODS}",
        ),
        (
            {"client": {"optimizer": {"name": "sgdd"}}},
            "`client.optimizer.name` is 'sgdd', expected one of sgd, adamw; did you mean 'sgd'?",
        ),
        (
            {"client": {"optimizer": {"name": "sgd", "nesterow": True}}},
            "`client.optimizer.nesterow` is unknown; did you mean `client.optimizer.nesterov`?",
        ),
        (
            {"client": {"schedule": {"name": "step", "after_rounds": [1, "x"]}}},
            "`client.schedule.after_rounds.1` is 'x', ",
        ),
        ({"tuning": {"name": "head", "r": 4}}, "`tuning.r` is unknown; it is a key of `tuning.name` = lora"),
        ({"seed": "7"}, "`seed` is '7', expected: a whole number, without quotes"),
        ({"seed": True}, "`seed` is true, expected: a whole number"),
        ({"strategy": {"server_lr": float("nan")}}, "`strategy.server_lr` is nan, expected: "),
        ({"client": {"lr": float("inf")}}, "`client.lr` is inf, expected: a finite number"),
        ({"runtime": {"lanes": "many"}}, "`runtime.lanes` is 'many', expected: 'auto' or a whole number"),
        ({"runtime": {"lanes": 0}}, "`runtime.lanes` is 0, expected: 'auto' or greater than or equal to 1"),
        ({"tuning": {"name": "lora", "target_modules": []}}, "`tuning.target_modules` is [], expected: "),
        (
            {"tuning": {"name": "lora", "rank_pattern": {"q": 0}}},
            "`tuning.rank_pattern.q` is 0, expected: greater than or ",
        ),
        (
            {"tuning": {"name": "lora", "alpha_pattern": {"q": 0.0}}},
            "`tuning.alpha_pattern.q` is 0.0, expected: greater ",
        ),
        ({"client": {"local_epochs": 1, "local_steps": 1}}, "`client`: give `local_epochs` or `local_steps`, not both"),
        ({"client": 3}, "`client` is 3, expected: "),
        ({"partition": {"name": "iid"}}, "`partition.num_clients` is missing"),
        ({"model": {}}, '`model.source` is missing; for example "bundled:vit-micro"'),
        ({"model": {"source": "./nowhere"}}, "`model.source`: model directory './nowhere' does not exist."),
        (
            {"model": {"source": "bundled:nothing"}},
            "`model.source`: there is no bundled backbone 'nothing', expected one of ",
        ),
        (
            {"model": {"architecture": {"model_type": "vit"}, "adapter": "./nowhere"}},
            "`model.adapter` is './nowhere', which is not a directory",
        ),
        ({"partition": {"name": "natural"}}, "`partition.name` is 'natural', which needs `data.client_column`"),
        (
            {"strategy": {"clients_per_round": 17}},
            "`strategy.clients_per_round` is 17, more than `partition.num_clients` = 16",
        ),
        (
            {"strategy": {"clients_per_round": 4, "min_replies": 5}},
            "`strategy.min_replies` is 5, more than `strategy.clients_per_round` = 4",
        ),
        (
            {"strategy": {"clients_per_round": 4, "mean": {"name": "trimmed", "fraction": 0.2}}},
            "`strategy.mean.fraction` is 0.2, which is less than one of `strategy.clients_per_round` = 4",
        ),
        (
            {"codec": {"up": "int8"}},
            "`codec.up` is 'int8', expected a table; give `codec.up.name`, such as `codec.up.name = 'int8'`",
        ),
        (
            {"strategy": {"mean": 3}},
            "`strategy.mean` is 3, expected a table; give `strategy.mean.name`, such as `strategy.mean.name = ",
        ),
        (
            {"client": {"optimizer": "sgd"}},
            "`client.optimizer` is 'sgd', expected a table; give `client.optimizer.name`, such as",
        ),
        (
            {"strategy": {"clients_per_round": 2, "mean": {"name": "median"}}},
            "`strategy.mean.name` is 'median', which needs at least 3 replies to leave a bad one out",
        ),
        *(
            (
                {"strategy": {"name": name, "clients_per_round": 1, **budget}, "client": {"local_epochs": None}},
                f"`strategy.clients_per_round` is 1, expected at least 2: {name!r} compares the clients of",
            )
            for name, budget in (("fedlama", {}), ("fedlama-auto", {"share": 0.5}))
        ),
        (
            {"strategy": {"name": "scaffold"}, "client": {"optimizer": {"name": "adamw"}}},
            "`strategy.name` is 'scaffold', which corrects gradients; `client.optimizer.name` must be 'sgd'",
        ),
        (
            {"strategy": {"name": "fedprox"}},
            f"`strategy.name` is 'fedprox', expected one of {STRATEGIES}; 'fedprox' is a choice of `local_rule.name`",
        ),
        (
            {"client": {"optimizer": {"name": "sgd", "momentum": 0.0, "nesterov": True}}},
            "`client.optimizer.nesterov` needs `client.optimizer.momentum` above 0",
        ),
        (
            {"client": {"schedule": {"name": "cosine", "warmup_rounds": 51}}},
            "`client.schedule.warmup_rounds` is 51, more than `strategy.num_rounds` = 50",
        ),
    ],
)
def test_one_problem_is_explained_in_our_words(section: Table, problem: str):
    result = problems_of(table(**section))
    assert len(result) == 1
    assert result[0].startswith(problem)


def test_a_section_that_is_wrong_does_not_make_another_look_wrong():
    # The defaults of a section that could not be read, 8 clients a round and 50 rounds, are not what was written.
    wrong = table(
        strategy={"clients_per_round": 2, "num_rounds": 100, "server_lr": -1.0},
        partition={"name": "iid", "num_clients": 4},
        client={"schedule": {"name": "cosine", "warmup_rounds": 60}},
    )
    assert problems_of(wrong) == ("`strategy.server_lr` is -1.0, expected: greater than 0",)


def test_a_missing_section_is_compared_with_its_defaults():
    result = problems_of(table(partition={"name": "iid", "num_clients": 4}))
    assert result == ("`strategy.clients_per_round` is 8, more than `partition.num_clients` = 4",)


def test_overrides_reach_top_sections_and_nested_tables():
    config = parse_config(
        table(),
        [
            "seed=3",
            "strategy.num_rounds=2",
            "client.optimizer.name=adamw",
            "client.optimizer.beta1 = 0.5",
            "tuning.name=head",
            "codec.name='float16'",
            "model.architecture.hidden_size=24",
        ],
    )
    assert (config.seed, config.strategy.num_rounds, config.codec.up.name) == (3, 2, "float16")
    assert config.client.optimizer == AdamW(beta1=0.5)
    assert config.tuning == Head()
    assert config.model.architecture == {"model_type": "vit", "hidden_size": 24}


def test_the_last_override_of_a_key_wins():
    assert parse_config(table(), ["seed=3", "seed=4"]).seed == 4


def test_overrides_do_not_change_the_table_they_are_put_on():
    given = table(strategy={"num_rounds": 9})
    parse_config(given, ["strategy.num_rounds=2", "client.lr=0.1"])
    assert given == table(strategy={"num_rounds": 9})


def test_choosing_another_method_drops_the_fields_of_the_one_in_the_file():
    config = parse_config(table(tuning={"name": "lora", "r": 4}), ["tuning.name=head"])
    assert config.tuning == Head()


def test_choosing_the_method_of_the_file_again_keeps_its_fields():
    config = parse_config(table(tuning={"name": "lora", "r": 4}), ["tuning.name=lora"])
    assert config.tuning == Lora(r=4)


def test_naming_the_method_that_the_file_left_to_the_default_keeps_its_fields():
    config = parse_config(table(strategy={"num_rounds": 3}), ["strategy.name=fedavg"])
    assert config.strategy.num_rounds == 3


@pytest.mark.parametrize("order", [1, -1])
def test_a_field_and_the_method_it_belongs_to_may_be_set_in_any_order(order: int):
    overrides = ["tuning.name=lora", "tuning.r=4"][::order]
    assert parse_config(table(tuning={"name": "head"}), overrides).tuning == Lora(r=4)


def test_a_name_outside_of_any_section_is_one_unknown_key():
    assert problems_of(table(), ("name=demo",)) == (f"`name` is unknown; known: {', '.join(Config.model_fields)}",)


@pytest.mark.parametrize("section", ["data", "partition", "tuning", "strategy", "client", "privacy", "runtime"])
def test_every_key_of_a_section_that_stands_outside_of_it_is_said_to_belong_there(section: str):
    for key in type(getattr(parse_config(table()), section)).model_fields.keys() - {"name", *Config.model_fields}:
        (problem,) = problems_of(table(**{key: 1}))
        assert problem.startswith(f"`{key}` is unknown; it belongs in `[")
        assert f"`[{section}]`" in problem


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("strategy.num_rounds", "`--set strategy.num_rounds`: expected `section.key=value`"),
        ("=3", "`--set =3`: expected `section.key=value`"),
        ("strategy.=3", "`--set strategy.=3`: expected `section.key=value`"),
        ("seed.x=3", "`--set seed.x=3`: `seed` is a value, not a section"),
        (
            "strategy.phi=4",
            "`strategy.phi` is unknown; it is a key of `strategy.name` = fedlama, fedlama-auto",
        ),
        ("strategy.num_rounds=two", "`strategy.num_rounds` is 'two', expected: a whole number"),
    ],
)
def test_an_override_that_cannot_be_used_is_a_problem(override: str, problem: str):
    assert problems_of(table(seed=1), (override,)) == (problem,)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"1 problem in .*gone.toml:\n  - cannot be read: No such file or directory"):
        load_config(tmp_path / "gone.toml")


def test_a_directory_is_no_configuration(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_a_mark_in_front_of_the_text_is_passed_over(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf" + parse_config(table()).to_toml().encode())
    assert load_config(path) == parse_config(table())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = " + "[" * 5000 + "]" * 5000, "is too deep: expected a few levels of tables"),
        ("x = " + "[" * 50 + "]" * 50, "`x...` is too deep: expected 16 levels at most"),
        (".".join(["a"] * 2000) + " = 1", "is too deep: expected 16 levels at most"),
        ("seed = " + "9" * 5000, "is not TOML: .*5000 digits"),
        (f"[data]\nmax_length = {2**64}", "`data.max_length` is a whole number of 65 bits, expected 63 at most"),
    ],
)
def test_values_out_of_range_for_any_setting_are_refused_with_a_message(tmp_path: Path, content: str, message: str):
    (tmp_path / "run.toml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "run.toml")


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000])
def test_values_on_the_command_line_that_cannot_be_read_are_words_and_shown_in_part(value: str):
    with pytest.raises(ConfigError, match=r"`seed` is '.{190,200}\.\.\., expected: a whole number"):
        parse_config(table(), [f"seed={value}"])


@pytest.mark.parametrize("content", [b"seed = \n", b"[model\n", b"\xff\xfe\x00"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"1 problem in .*run.toml:\n  - is not TOML: "):
        load_config(path)


PARTITIONS = [
    {"name": "iid", "num_clients": 16},
    {"name": "dirichlet", "num_clients": 16, "alpha": 0.1},
    {"name": "pathological", "num_clients": 16},
    {"name": "natural"},
    {"name": "quantity", "num_clients": 16, "alpha": 0.5},
]


AXES = {
    "partition": [partition["name"] for partition in PARTITIONS],
    "tuning": [*TUNING_METHODS, "lora+bias", "bias+adapter+prompt"],
    **{
        key: named_choices(Config)[f"{key}.name"]
        for key in ("strategy", "strategy.mean", "local_rule", "client.optimizer", "client.schedule", "codec")
    },
}


def may_meet(case: dict[str, str]) -> bool:
    if {"strategy": "scaffold", "client.optimizer": "adamw"}.items() <= case.items():
        return False
    # What a sparse codec leaves out would count as zero where a mean compares clients.
    mean = MEANS[case.get("strategy.mean", "weighted")]
    return not (case.get("codec") in {"top-k", "random-k"} and mean.reads == "each")


def check_that_it_is_read_back_equal(case: dict[str, str]) -> None:
    strategy = {"name": case["strategy"]}
    if case["strategy"] not in {"fednova", "scaffold"}:  # these have the weighted mean and no other
        strategy["mean"] = {"name": case["strategy.mean"]}
    config = parse_config(
        table(
            byte_budget_mib=9.5,  # which fedlama-auto needs
            data={"source": "digits", "client_column": "writer"},
            partition=next(partition for partition in PARTITIONS if partition["name"] == case["partition"]),
            tuning={"name": case["tuning"]},
            local_rule={"name": case["local_rule"]},
            client={"optimizer": {"name": case["client.optimizer"]}, "schedule": {"name": case["client.schedule"]}},
            codec={"name": case["codec"]},
            strategy=strategy,
        )
    )
    assert parse_config(tomllib.loads(config.to_toml())) == config, case


def test_a_written_configuration_is_read_back_equal_for_every_two_names():
    for case in pairwise(AXES, may_meet):
        check_that_it_is_read_back_equal(case)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", AXES["tuning"])
def test_a_written_configuration_is_read_back_equal_for_every_four_names(tuning: str):
    # All of partition, tuning, strategy and mean; the others take turns, as all combinations are more than 100,000.
    four, others = list(AXES)[:4], list(AXES)[4:]
    rest = itertools.cycle(itertools.product(*(AXES[key] for key in others)))
    product = itertools.product(*((AXES | {"tuning": [tuning]})[key] for key in four))
    for values, turn in zip(product, rest, strict=False):
        case = dict(zip(AXES, (*values, *turn), strict=True))
        if may_meet(case):
            check_that_it_is_read_back_equal(case)


def test_values_other_than_the_defaults_survive_writing(tmp_path: Path):
    config = parse_config(
        table(
            seed=2**40,
            byte_budget_mib=0.5,
            tuning={
                "name": "lora", "r": 3, "lora_alpha": 1e-3, "target_modules": ["q", "fc1"],
                "rank_pattern": {"layers.0.mlp.fc1": 2}, "alpha_pattern": {"fc1": 7.5}, "train_head": False,
            },
            local_rule={"name": "fedprox", "mu": 0.25},
            client={"local_steps": 3, "schedule": {"name": "step", "after_rounds": [1, 2]}},
            runtime={"lanes": 3, "cache_mib": 0},
        )
    )  # fmt: skip
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    again = load_config(path)
    assert again == config
    assert again.seed == 2**40
    assert again.local_rule == FedProx(mu=0.25)
    assert again.tuning.rank_pattern == {"layers.0.mlp.fc1": 2}
    assert again.client.schedule.after_rounds == (1, 2)


def test_methods_in_tables_with_fields_that_are_none_survive_writing():
    config = parse_config(
        table(
            tuning=[
                {"name": "adapter", "placement": "parallel", "scale": 0.1},
                {"name": "accumulator", "num_heads": 2, "head": "linear"},
            ],
            exits={"train": "random", "tiers": [1, 2], "assignment": "shuffle"},
        )
    )
    accumulator, adapter = config.tuning.methods
    assert accumulator.attention_width is accumulator.num_positions is None
    assert (accumulator.num_heads, adapter.placement, config.exits.tiers) == (2, "parallel", (1, 2))
    written = tomllib.loads(config.to_toml())
    assert parse_config(written) == config
    assert "tiers_file" not in written["exits"]


def test_a_file_of_tiers_is_written_with_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tiers.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    config = parse_config(table(exits={"tiers_file": "tiers.json"}, tuning={"name": "exit-heads"}))
    assert config.exits.tiers_file == str(tmp_path / "tiers.json")


def test_a_written_configuration_holds_the_defaults():
    written = tomllib.loads(parse_config(table()).to_toml())
    assert written["tuning"]["r"] == 8
    assert written["client"]["optimizer"]["momentum"] == Sgd().momentum
    assert "byte_budget_mib" not in written


def test_choices_are_the_names_that_a_section_takes():
    choices = named_choices(Config)
    assert choices["codec.name"] == ["float32", "float16", "bfloat16", "int8", "int4", "sign", "top-k", "random-k"]
    adaptive, windowed = ["fedavgm", "fedadagrad", "fedadam", "fedyogi"], ["fedlama", "fedlama-auto"]
    assert choices["strategy.name"] == ["fedavg", *adaptive, "fednova", "scaffold", *windowed, "fedluar"]
    assert choices["strategy.mean.name"] == [
        "weighted", "uniform", "median", "trimmed", "krum", "multi-krum", "geometric-median", "clipped",
    ]  # fmt: skip
    assert choices["aggregation.name"][:4] == ["plain", "ffa", "rolora", "fedsa"]
    assert choices["client.schedule.name"] == ["constant", "cosine", "linear", "step"]


IID = {"name": "iid", "num_clients": 16}


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"personalization": {"held_out_clients": 16}},
            "`personalization.held_out_clients` holds out 16 of 16 clients; at least one has to train",
        ),
        (
            {"personalization": {"held_out": [3, 16]}},
            "`personalization.held_out` has 16, but there are 16 clients, 0 to 15",
        ),
        (
            {"personalization": {"held_out_clients": 9}},
            "`strategy.clients_per_round` is 8, but `[personalization]` holds out 9 of 16 clients, which leaves 7",
        ),
        (
            {
                "personalization": {"held_out": [1]},
                "model": {"architecture": {"model_type": "vit"}, "batch_norm": "local"},
            },
            (
                "`[personalization]` holds out clients, but with `model.batch_norm` = 'local' every client keeps its "
                "own norms from round to round, which a held-out client does not have"
            ),
        ),
        (
            {"personalization": {"held_out": [1], "held_out_clients": 2}},
            "`personalization`: give `held_out_clients` or `held_out`, not both",
        ),
        ({"personalization": {"lr": [1]}}, "`personalization.lr` is unknown; did you mean `personalization.lrs`?"),
        (
            {"personalization": {"tune": ["tokens"]}},
            "`personalization.tune.0` is 'tokens', expected: 'all', 'adapters' or 'token'",
        ),
    ],
)
def test_what_is_wrong_with_held_out_clients_is_found_before_the_data_are_read(sections: Table, problem: str):
    assert problems_of(table(partition=IID, **sections)) == (problem,)


def test_as_many_clients_as_a_round_asks_may_be_left():
    config = parse_config(table(partition=IID, personalization={"held_out_clients": 8, "lrs": [1, 0.5]}))
    assert config.personalization.lrs == (1.0, 0.5)
    assert parse_config(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ('tuning.r="8"', "`fedelta list tuning` describes its keys."),
        ("strategy.num_rounds=true", "`fedelta list strategy` describes its keys."),
        ("data.source=./absent", "a path counts from the folder in which the command runs."),
        ("tuning.name=lorra", "`fedelta list` names what can be chosen; `--plugin FILE` adds methods of your own."),
        ("stratgy.num_rounds=3", "`fedelta list strategy` describes its keys."),
    ],
)
def test_a_hint_fits_its_error(override: str, hint: str):
    with pytest.raises(ConfigError) as error:
        load_config("recipes/demo.toml", [override])
    assert error.value.hint == hint


def test_a_recipe_of_the_package_is_called_by_its_name_unless_a_file_has_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    recipe = load_config(repository / "recipes" / "demo.toml")
    assert load_config("demo") == recipe
    Path("demo").write_text(recipe.to_toml().replace("seed = 7", "seed = 8"))
    assert load_config("demo").seed == 8
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config("dem")
