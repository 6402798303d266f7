"""A codec for each direction, and what a lossy upload leaves to the next one."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.builders import assert_same_memories, tiny_data, tiny_engine
from tests.small import stop_after, write_small
from tests.strategies.windowed import SPEC, START, Walking

from fedelta.codecs.cast import Cast
from fedelta.codecs.changes import Mirror
from fedelta.codecs.channel import Channel
from fedelta.codecs.quantize import Integers
from fedelta.codecs.wire import decode, encode
from fedelta.config import load_config, parse_config
from fedelta.engine.work import ClientSettings
from fedelta.errors import ConfigError
from fedelta.experiment import Experiment
from fedelta.federation.client import Site
from fedelta.federation.memory import Memory
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.strategies.base import RoundPlan
from fedelta.tuning.lora import Lora

CODECS = "float32, float16, bfloat16, int8, int4, sign, top-k, random-k"


def test_one_name_is_for_both_directions_and_a_direction_may_have_its_own():
    assert Channel.model_validate({"name": "float16"}) == Channel(down=Cast(name="float16"), up=Cast(name="float16"))
    mixed = Channel.model_validate({"name": "float16", "up": {"name": "int8"}})
    assert (mixed.down, mixed.up) == (Cast(name="float16"), Integers())
    assert Channel.model_validate({"up": {"name": "int8"}}).down == Cast()


@pytest.mark.parametrize(
    "table",
    [
        {"name": "float16"},
        {"down": {"name": "float16"}, "up": {"name": "bfloat16"}},
        {"name": "sign", "group": "row", "error_feedback": False, "entropy": "zstd"},
        {"down": {"name": "float32"}, "up": {"name": "top-k", "k": 5}, "changes": False},
        {"down": {"name": "top-k", "k": 1}, "up": {"name": "top-k", "k": 1.0}},  # one number, and all numbers
    ],
)
def test_a_channel_is_written_as_shortly_as_it_can_be_read(table: dict[str, object]):
    channel = Channel.model_validate(table)
    assert repr(channel.model_dump(mode="json")) == repr(table)  # 1 is not 1.0
    assert Channel.model_validate(channel.model_dump(mode="json")) == channel


def test_a_new_name_on_the_command_line_is_for_both_directions(tmp_path: Path):
    path = write_small(tmp_path)
    mixed = load_config(path, ["codec.up.name=int8"]).codec
    assert (mixed.down, mixed.up) == (Cast(name="float16"), Integers())
    (tmp_path / "mixed.toml").write_text(load_config(path, ["codec.up.name=int8"]).to_toml())
    assert load_config(tmp_path / "mixed.toml", ["codec.name=bfloat16"]).codec == Channel(name="bfloat16")


def test_an_unknown_codec_is_named_once(tmp_path: Path):
    for key in ("codec.name", "codec.up.name"):
        with pytest.raises(ConfigError) as caught:
            load_config(write_small(tmp_path), [f"{key}=zip"])
        assert caught.value.problems == (f"`{key}` is 'zip', expected one of {CODECS}",)
    with pytest.raises(ValidationError):
        Channel(name="zip")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"foo": 1}, "`codec.foo` is unknown; known: name, down, up, error_feedback, changes, entropy"),
        ({"nme": "int8"}, "`codec.nme` is unknown; did you mean `codec.name`?"),
        ({"dwn": {"name": "int8"}}, "`codec.dwn` is unknown; did you mean `codec.down`?"),
    ],
)
def test_an_unknown_key_is_called_that(table: dict[str, object], problem: str):
    sections = {"model": {"source": "a"}, "data": {"source": "digits"}, "partition": {"name": "iid", "num_clients": 8}}
    with pytest.raises(ConfigError) as caught:
        parse_config({**sections, "codec": table})
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["codec.name=top-k", "codec.k=0"], "`codec.k` is 0, expected: a share of a tensor's numbers, above 0"),
        (["codec.name=random-k", "codec.k=0.0"], "`codec.k` is 0.0, expected: a share of a tensor's numbers, above 0"),
        (["codec.name=random-k", "codec.k=nan"], "`codec.k` is nan, expected: a share"),
        (["codec.name=top-k", "codec.k=-0.1"], "`codec.k` is -0.1, expected: a share"),
        (["codec.name=top-k", "codec.k=2.0"], "`codec.k` is 2.0, expected: a share"),
        (["codec.up.name=top-k", "codec.up.k=1%"], "`codec.up.k` is '1%', expected: a share"),
        (["codec.name=int4", "codec.group=5"], "`codec.group` is 5, expected: "),
        (["codec.up.name=int4", "codec.up.group=column"], "`codec.up.group` is 'column', expected: 'row'"),
        (["codec.name=int4", "codec.rounding=up"], "`codec.rounding` is 'up', expected: 'nearest' or 'stochastic'"),
        (["codec.entropy=gzip"], "`codec.entropy` is 'gzip', expected: 'none' or 'zstd'"),
        (["codec.name=int5"], f"`codec.name` is 'int5', expected one of {CODECS}; did you mean 'int"),
        (["codec.up.name=top-k", "strategy.mean.name=median"], "which compares the values of clients"),
        (["codec.up.name=top-k", "codec.up.k=1", "strategy.mean.name=krum"], "which compares the values of clients"),
        (["codec.down.name=top-k", "codec.changes=false"], "`codec.changes` is false, so that downloads are whole"),
        (["codec.name=random-k", "codec.error_feedback=false"], "`codec.error_feedback` is false, so that downloads"),
        (["codec.name=int4", "aggregation.name=hlora"], "which makes a new pair of factors in every round"),
        (["codec.down.name=int4", "aggregation.name=hlora"], "has to know what it started from; choose 'float16'"),
    ],
)
def test_what_cannot_work_is_told_before_round_1(tmp_path: Path, overrides: list[str], problem: str):
    with pytest.raises(ConfigError) as caught:
        load_config(write_small(tmp_path), overrides)
    assert any(problem in text for text in caught.value.problems), caught.value.problems


def test_the_settings_of_the_channel_outlive_a_new_name(tmp_path: Path):
    first = load_config(
        write_small(tmp_path), ["codec.entropy=zstd", "codec.error_feedback=false", "codec.up.name=int8"]
    )
    (tmp_path / "first.toml").write_text(first.to_toml())
    channel = load_config(tmp_path / "first.toml", ["codec.name=int4"]).codec
    assert channel == Channel(name="int4", entropy="zstd", error_feedback=False)
    assert (channel.feeds_back, channel.sends_changes, channel.compresses) == (False, False, True)


def test_a_mean_that_compares_clients_takes_signs_and_all_values_in_order(tmp_path: Path):
    for overrides in (["codec.up.name=sign"], ["codec.up.name=top-k", "codec.up.k=1.0"]):
        load_config(write_small(tmp_path), [*overrides, "strategy.mean.name=median"])


def test_downloads_may_be_sparse_where_nothing_is_left_out_for_good(tmp_path: Path):
    for overrides in (["codec.down.k=0.01"], ["codec.down.k=1.0", "codec.changes=false"]):
        load_config(write_small(tmp_path), ["codec.down.name=top-k", *overrides])


WINDOWS = ["strategy.name=fedlama", "strategy.phi=2", "strategy.tau=2", "client.local_epochs="]
LOSSY = {
    "int8": ["codec.name=int8"],
    "int4": ["codec.name=int4", "codec.rounding=stochastic", "codec.entropy=zstd"],
    "sign": ["codec.name=sign"],
    "top-k": ["codec.name=top-k", "codec.k=0.1"],
    "random-k": ["codec.name=random-k", "codec.k=0.1"],
}


@pytest.mark.parametrize(
    ("codec", "strategy", "rounds"),
    [
        ("int4", "fedlama", [3]),
        *(pytest.param(*pair, [1, 2, 3], marks=pytest.mark.slow) for pair in product(LOSSY, ["fedavg", "fedlama"])),
    ],
)
def test_a_run_that_is_stopped_after_any_round_goes_on_with_the_same_bits(
    codec: str, strategy: str, rounds: list[int], tmp_path: Path
):
    # With residuals, mirrored values and, in the middle of a window, what clients have trained and not sent. All six
    # clients take part in each window, so that downloads after the first are changes.
    overrides = [*LOSSY[codec], "strategy.num_rounds=4", "strategy.clients_per_round=6"]
    overrides += WINDOWS if strategy == "fedlama" else []
    path = write_small(tmp_path)
    whole = Experiment.from_toml(path, overrides).run(tmp_path / "whole", writes_page=False)
    for round in rounds:
        stopped = tmp_path / f"stopped{round}"
        with pytest.raises(KeyboardInterrupt):
            Experiment.from_toml(path, overrides).run(stopped, on_round=stop_after(round), writes_page=False)
        parts = Experiment.from_run(stopped).resume(stopped, writes_page=False)
        for name in ("rounds.jsonl", "ledger.jsonl"):
            assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes()
        assert all(torch.equal(tensor, parts.params[name]) for name, tensor in whole.params.items())
        assert_same_memories(whole.path, parts.path)


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "strategy"), list(product(LOSSY, ["fedavg", "fedlama"])))
def test_workers_change_no_bit(codec: str, strategy: str, tmp_path: Path):
    overrides = [*LOSSY[codec], "strategy.num_rounds=4", *(WINDOWS if strategy == "fedlama" else [])]
    path, ends = write_small(tmp_path), []
    for workers in (1, 2):
        runtime = [f"runtime.workers={workers}"]
        ends.append(Experiment.from_toml(path, overrides + runtime).run(tmp_path / str(workers), writes_page=False))
    for name in ("rounds.jsonl", "ledger.jsonl"):
        assert (ends[0].path / name).read_bytes() == (ends[1].path / name).read_bytes()
    assert_same_memories(ends[0].path, ends[1].path)


def site_with(channel: Channel) -> tuple[Site, Params]:
    engine, _ = tiny_engine(Lora(r=2), tiny_data(num_rows=8))
    return Site(engine, {0: torch.arange(8)}, channel, seed=0, num_rounds=4), engine.bank.read(0)


def served(site: Site, params: Params, round: int, *, accepted: bool = True) -> Params:
    """What the server decodes of client 0's reply."""
    names = site.engine.spec.names
    payload, _ = encode(params, site.wire, site.channel.down)
    [reply] = site.run(RoundPlan(round, {0: names}, {0: names}, num_clients=1), {0: payload})
    site.accept([0] if accepted else [])
    return decode(reply.payload, site.wire, site.channel.up)[0]


def moved(round: int, client_id: int) -> Params:
    """What a client adds to its tensors in a round."""
    return {
        name: torch.randn(value.shape, generator=stream(0, "move", round, client_id, name))
        for name, value in START.items()
    }


CODEC_NAMES = st.sampled_from(CODECS.split(", "))


@settings(max_examples=60)
@given(
    down=CODEC_NAMES, up=CODEC_NAMES, feeds_back=st.sampled_from([True, True, False]),
    # Of each round: the tensors that travel, whether the reply is accepted, and whether the client forgets all before.
    rounds=st.lists(
        st.tuples(st.sets(st.sampled_from(SPEC.names)), st.sampled_from([True, True, False]),
                  st.sampled_from([True, False, False, False])),
        min_size=2, max_size=6,
    ),
)  # fmt: skip
def test_all_that_was_sent_and_the_residual_are_all_that_was_trained(
    down: str, up: str, feeds_back: bool, rounds: list[tuple[set[str], bool, bool]]
):
    engine = Walking(moved, ClientSettings(local_steps=1))
    channel = Channel(down={"name": down}, up={"name": up}, error_feedback=feeds_back)
    site = Site(engine, {0: torch.arange(3)}, channel, seed=0, num_rounds=6)
    trained, sent = ({name: torch.zeros_like(value).double() for name, value in START.items()} for _ in range(2))
    mirror, lost = Mirror(), {name: torch.zeros_like(value).double() for name, value in START.items()}
    for number, (asked, accepted, forgets) in enumerate(rounds, start=1):
        engine.round = number
        if forgets:
            lost = {name: lost[name] + site.memory_of(0).residual.get(name, 0) for name in SPEC}
            site.memories.stage(0, Memory())
            site.memories.commit([0])
            mirror = mirror.forgotten([0])
        values = {name: value + 0.3 * number for name, value in START.items()}
        if channel.sends_changes:
            mirror = mirror.advanced(number, values, SPEC, channel.down, number)
            payload, _ = mirror.payload(values, mirror.since(0, SPEC.names), SPEC, channel.down, compress=False)
            anchor = {name: mirror.tensors[name].value.float() for name in SPEC}
        else:
            payload, _ = encode(values, SPEC, channel.down, number)
            anchor, _ = decode(payload, SPEC, channel.down)
        names = tuple(name for name in SPEC if name in asked)
        [reply] = site.run(RoundPlan(number, {0: SPEC.names}, {0: names}, num_clients=1), {0: payload})
        site.accept([0] if accepted else [])
        # The anchor is the decoded value, so that what a coarse download leaves out is in no delta.
        assert all(torch.equal(engine.jobs[-1][1].anchor[name], tensor) for name, tensor in anchor.items())
        if accepted:
            mirror = mirror.kept({0: SPEC.names})
            for name, tensor in decode(reply.payload, SPEC, channel.up)[0].items():
                sent[name] += tensor
                trained[name] += moved(number, 0)[name]
    residual = site.memory_of(0).residual
    assert residual.keys() <= (set(SPEC.names) if channel.feeds_back else set())
    if channel.feeds_back or up == "float32":
        for name, total in trained.items():
            # What a client has forgotten is lost, and nothing else.
            torch.testing.assert_close(sent[name] + residual.get(name, 0) + lost[name], total, rtol=1e-5, atol=1e-5)


def test_the_residual_of_a_reply_that_was_not_accepted_is_forgotten():
    site, start = site_with(Channel(up=Integers()))
    rejected = served(site, start, 1, accepted=False)
    assert site.memory_of(0).residual == {}
    repeated = served(site, start, 1)
    assert all(torch.equal(rejected[name], repeated[name]) for name in start)
    assert set(site.memory_of(0).residual) == set(start)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_exact_and_rounded_numbers_leave_nothing_behind(name: str):
    site, start = site_with(Channel(name=name))
    served(site, start, 1)
    assert site.memories.of(0) is None


def test_a_run_with_int8_uploads_counts_its_bytes(tmp_path: Path):
    overrides = ["codec.up.name=int8", "strategy.num_rounds=4"]
    result = Experiment.from_toml(write_small(tmp_path), overrides).run(tmp_path / "run", writes_page=False)
    # LoRA's A of q and v in two blocks: [2, 32]; B: [32, 2]; the head: [10, 32] and [10]. A byte each, for each tensor
    # an exponent, and a scale of two bytes for 64 numbers: 8 of the small tensors, 5 of the head, 1 of its bias.
    spec = result.assembly.spec
    assert result.ledger.uplink_tensor_bytes == 4 * 3 * (spec.num_parameters + len(spec) + 2 * (8 + 5 + 1))
    assert result.ledger.downlink_tensor_bytes == 4 * 3 * 2 * spec.num_parameters
