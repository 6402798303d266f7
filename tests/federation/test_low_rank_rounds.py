"""Low-rank aggregation in whole rounds, with real clients and payloads."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import pytest
import torch

from fedelta.aggregation.carrying import is_dense, rows_in_use
from fedelta.aggregation.fedex import FedEx
from fedelta.aggregation.fedsa import FedSa
from fedelta.aggregation.ffa import Ffa
from fedelta.aggregation.flora import Flora
from fedelta.aggregation.hlora import Hlora
from fedelta.aggregation.low_rank import Apart, LowRank, as_matrix, paths_of
from fedelta.aggregation.rolora import RoLora
from fedelta.codecs.cast import Cast
from fedelta.codecs.channel import Channel
from fedelta.codecs.quantize import Integers
from fedelta.errors import ConfigError
from fedelta.federation.base import Federation, Standing
from fedelta.federation.client import Site
from fedelta.federation.records import RoundOutcome, Transfer
from fedelta.params import Params
from fedelta.strategies.base import Strategy
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.scaffold import Scaffold
from fedelta.testing.federations import played, real_clients_train_with_it
from fedelta.tuning.lora import Lora

METHODS: tuple[LowRank, ...] = (Apart(), Ffa(), RoLora(), FedSa(), Hlora(), Flora(), FedEx())
JOINING: tuple[LowRank, ...] = (Hlora(), Flora(), FedEx())
LORA = Lora(r=4, target_modules=("q", "v"))
Played = tuple[Federation, Standing, list[RoundOutcome]]


def play(
    method: LowRank,
    strategy: Strategy | None = None,
    *,
    tuning: Lora = LORA,
    family: str = "vit",
    ranks: Mapping[int, int] | None = None,
    channel: Channel | None = None,
) -> Played:
    strategy = strategy or FedAvg(clients_per_round=3, num_rounds=3)
    return played(strategy, tuning, family, aggregation=method, ranks=ranks or {}, channel=channel or Channel())


def bytes_of(outcome: RoundOutcome, direction: str) -> list[Transfer]:
    return [transfer for transfer in outcome.transfers if transfer.direction == direction]


def layer(params: Params, path: str) -> torch.Tensor:
    """What a pair and what is carried beside it add to a layer, without s."""
    a, b = (as_matrix(params[f"{path}.{factor}"]) for factor in ("lora_A", "lora_B"))
    if f"{path}.carried_A" not in params:
        return b @ a
    c, d = (as_matrix(params[f"{path}.{factor}"]) for factor in ("carried_A", "carried_B"))
    return b @ a + d @ c


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("family", ["vit", "small-resnet"])
def test_clients_train_with_it_and_nothing_is_refused(method: LowRank, family: str):
    tuning = LORA if family == "vit" else Lora(r=2, target_modules="all-conv")
    strategy = FedAvg(clients_per_round=3, num_rounds=3)
    if method.name != "flora":  # whose B is zero after each round, and whose A is another
        real_clients_train_with_it(lambda: play(method, strategy, tuning=tuning, family=family))
        return
    _, standing, outcomes = play(method, strategy, tuning=tuning, family=family)
    assert all(not outcome.rejections for outcome in outcomes)
    assert all(layer(outcomes[-1].params, path).any() for path in paths_of(standing.params))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_clients_of_other_ranks_train_with_it(method: LowRank):
    _, standing, outcomes = play(method, ranks={0: 1, 1: 2, 2: 4, 3: 3, 4: 1})
    assert all(not outcome.rejections for outcome in outcomes)
    assert any(not torch.equal(tensor, standing.params[name]) for name, tensor in outcomes[-1].params.items())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_equal_ranks_are_no_ranks_to_the_last_bit_but_for_the_order_of_an_svd(method: LowRank):
    with_ranks, without = play(method, ranks=dict.fromkeys(range(5), 4)), play(method)
    for name, tensor in without[2][-1].params.items():
        if method.name != "hlora":
            assert torch.equal(tensor, with_ranks[2][-1].params[name])


def one_step(method: LowRank) -> Params:
    # Batches of 4 rows: in one local step from B = 0 only B and the head have a gradient.
    strategy = FedLama(clients_per_round=3, num_rounds=1, tau=1, phi=1)
    return play(method, strategy)[2][-1].params


@pytest.mark.parametrize("method", [Ffa(), RoLora(), Hlora(), FedEx()], ids=lambda method: method.name)
def test_clients_that_moved_b_only_are_averaged_plainly_to_the_last_bit(method: LowRank):
    plain, other = one_step(Apart()), one_step(method)
    assert all(torch.equal(tensor, other[name]) for name, tensor in plain.items())


@pytest.mark.parametrize("method", [Hlora(), FedEx()], ids=lambda method: method.name)
def test_one_client_is_averaged_plainly_to_the_last_bit(method: LowRank):
    strategy = FedAvg(clients_per_round=1, num_rounds=2)
    plain, other = play(Apart(), strategy)[2][-1].params, play(method, strategy)[2][-1].params
    assert all(torch.equal(tensor, other[name]) for name, tensor in plain.items())


@pytest.mark.parametrize("method", [FedEx(), Flora()], ids=lambda method: method.name)
@pytest.mark.parametrize("ranks", [{}, {0: 1, 1: 2, 2: 4, 3: 3, 4: 1}])
def test_the_layer_of_the_server_is_the_mean_of_those_of_the_clients(method: LowRank, ranks: Mapping[int, int]):
    # In round 1 all methods send the same and clients train the same, so plain uploads tell what clients have.
    strategy = FedAvg(clients_per_round=5, num_rounds=1)
    _federation, standing, outcomes = play(method, strategy, ranks=ranks)
    expected: dict[str, torch.Tensor] = {}
    for client, size in enumerate((5, 6, 4, 5, 4)):
        alone = played_alone(client, ranks)
        for path in paths_of(standing.params):
            expected[path] = expected.get(path, 0) + size / 24 * layer(alone, path)
    for path, product in expected.items():
        found = layer(outcomes[-1].params, path)
        assert float((found - product).norm() / product.norm()) < 1e-5


def played_alone(client: int, ranks: Mapping[int, int]) -> Params:
    """The params of a client after round 1, in the shapes of the server."""
    federation, standing, _ = play(Apart(), FedAvg(clients_per_round=5, num_rounds=1), ranks=ranks)
    plan = federation.strategy.plan({}, 1, [client], federation.spec, federation.draws(1))
    form = federation.forms.form_of(standing.params, ranks.get(client))
    from fedelta.codecs.wire import decode, encode

    site = federation.runtime
    assert isinstance(site, Site)
    spec = federation.forms.spec_of(form)
    payload, _ = encode(federation.forms.narrowed(standing.params, form), spec, federation.channel.down)
    [reply] = list(site.run(plan, {client: payload}))
    delta = decode(reply.payload, spec, federation.channel.up)[0]
    anchors = federation.forms.widened(federation.forms.narrowed(standing.params, form), form)
    wide = federation.forms.widened(delta, form)
    return {name: anchors[name] + wide[name] for name in wide}


def test_what_does_not_travel_is_not_counted():
    sizes = {}
    for method in METHODS:
        outcome = play(method)[2][0]
        sizes[method.name] = {way: bytes_of(outcome, way)[0].tensor_bytes for way in ("up", "down")}
    path = next(group for group in sizes["plain"]["up"] if "q_proj" in group)
    a, b = 4 * 4 * 16, 4 * 16 * 4  # float32 of rank 4, 16 features
    assert sizes["plain"]["up"][path] == sizes["plain"]["down"][path] == a + b
    assert sizes["ffa"]["up"][path] == sizes["ffa"]["down"][path] == b
    assert (sizes["rolora"]["up"][path], sizes["rolora"]["down"][path]) == (b, a + b)
    assert sizes["fedsa"]["up"][path] == sizes["fedsa"]["down"][path] == a
    assert sizes["flora"]["down"][path] == a + b  # nothing is carried before round 1


def test_what_is_carried_goes_down_and_never_up():
    # 3 clients of rank 2 and 16 x 16 layers: 6 rows after round 1 (6 * 32 numbers), then 256 as the whole change.
    strategy = FedAvg(clients_per_round=3, num_rounds=3)
    _, _, outcomes = play(Flora(), strategy, tuning=LORA.model_copy(update={"r": 2}))
    path = next(group for group in bytes_of(outcomes[0], "up")[0].tensor_bytes if "q_proj" in group)
    pair = 4 * 2 * 32
    down = [bytes_of(outcome, "down")[0].tensor_bytes[path] for outcome in outcomes]
    assert down == [pair, pair + 4 * 6 * 32, pair + 4 * 256]
    assert {bytes_of(outcome, "up")[0].tensor_bytes[path] for outcome in outcomes} == {pair}
    c, d = (as_matrix(outcomes[0].params[f"{path}.{factor}"]) for factor in ("carried_A", "carried_B"))
    assert rows_in_use(c, d) == 6
    assert not is_dense(c, d)


def test_a_client_of_lower_rank_sends_and_gets_fewer_rows_and_a_download_is_the_best_of_its_rank():
    ranks = {0: 1, 1: 2, 2: 4, 3: 3, 4: 1}
    _, _, outcomes = play(Hlora(), FedAvg(clients_per_round=5, num_rounds=2), ranks=ranks)
    path = next(group for group in bytes_of(outcomes[0], "up")[0].tensor_bytes if "q_proj" in group)
    for outcome in outcomes:
        for transfer in outcome.transfers:
            assert transfer.tensor_bytes[path] == 4 * ranks[transfer.client_id] * 32
    a, b = (as_matrix(outcomes[-1].params[f"{path}.{factor}"]) for factor in ("lora_A", "lora_B"))
    strengths = b.norm(dim=0)
    assert (strengths[:-1] >= strengths[1:]).all()
    assert torch.allclose(a @ a.T, torch.eye(4).double() / 3, atol=1e-5)


def test_naive_padding_counts_the_rows_that_a_client_lacks_as_zeros():
    ranks = {0: 1, 1: 4, 2: 1, 3: 1, 4: 1}
    _, standing, outcomes = play(Apart(), FedAvg(clients_per_round=5, num_rounds=1), ranks=ranks)
    # Only client 1, 6 of 24 rows, has rows 2 to 4 of A; a local step changes them by little.
    for path in paths_of(standing.params):
        before, after = (params[f"{path}.lora_A"][1:] for params in (standing.params, outcomes[-1].params))
        assert torch.allclose(after, before * 6 / 24, atol=0.05)
        assert not torch.allclose(after, before, atol=0.05)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("ranks", [{}, {0: 1, 1: 2, 2: 4, 3: 3, 4: 1}])
def test_windows_keep_what_does_not_travel(method: LowRank, ranks: Mapping[int, int]):
    strategy = FedLama(clients_per_round=3, num_rounds=5, tau=2, phi=2)
    _, _, outcomes = play(method, strategy, ranks=ranks)
    assert all(not outcome.rejections for outcome in outcomes)
    assert len(bytes_of(outcomes[2], "up")) == 3


@pytest.mark.parametrize("method", [Ffa(), RoLora(), FedSa()], ids=lambda method: method.name)
def test_control_variates_are_those_of_what_travels(method: LowRank):
    _federation, _, outcomes = play(method, Scaffold(clients_per_round=3, num_rounds=3))
    assert all(not outcome.rejections for outcome in outcomes)
    for name, control in outcomes[0].state.items():
        if name.endswith("lora_A"):
            assert method.name == "fedsa" or not control.any()


def test_a_factor_at_rest_does_not_move():
    _, standing, outcomes = play(RoLora())
    before = standing.params
    for outcome in outcomes:
        still, moved = ("lora_A", "lora_B") if outcome.round % 2 else ("lora_B", "lora_A")
        for path in paths_of(before):
            assert torch.equal(outcome.params[f"{path}.{still}"], before[f"{path}.{still}"])
            assert not torch.equal(outcome.params[f"{path}.{moved}"], before[f"{path}.{moved}"])
        before = outcome.params


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_coarse_downloads_are_refused_where_ranks_differ(name: Literal["int4", "int8"]):
    coarse = Channel(down=Integers(name=name), up=Cast())
    with pytest.raises(ConfigError, match=f"`codec.down.name` is '{name}', but the ranks of clients differ"):
        play(Apart(), ranks={0: 1}, channel=coarse)


@pytest.mark.parametrize("method", JOINING, ids=lambda method: method.name)
def test_pairs_are_joined_as_clients_decoded_their_downloads(method: LowRank):
    # With float16 downloads the pair of a client is the rounded one plus its delta.
    half = play(method, channel=Channel(down=Cast(name="float16"), up=Cast()))[2][0].params
    exact = play(method)[2][0].params
    for path in paths_of(half):
        assert torch.allclose(layer(half, path), layer(exact, path), atol=2e-3)


def test_a_download_that_is_of_no_form_of_the_run_is_refused_in_words():
    federation, _standing, _ = play(Apart())
    site = federation.runtime
    assert isinstance(site, Site)
    plan = dataclasses.replace(federation.strategy.plan({}, 1, [0], federation.spec, federation.draws(1)))
    [reply] = list(site.run(plan, {0: b"FDLT\x02" + bytes(40)}))
    assert reply.fault is not None
    assert "the client cannot use its download" in reply.fault.reason
