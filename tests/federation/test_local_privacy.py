"""A site under `unit = "local"`: what leaves it is private with every tuning method, codec and strategy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.builders import CONVOLUTIONAL, assert_close, assert_same_bits, start_of, tiny_data, tiny_engine
from tests.contracts.test_tuning_methods import METHODS, fits

from fedelta.codecs.cast import Cast
from fedelta.codecs.channel import Channel
from fedelta.codecs.quantize import Integers
from fedelta.codecs.wire import decode, encode
from fedelta.engine.work import ClientSettings
from fedelta.federation.client import Site
from fedelta.federation.records import Reply
from fedelta.params import Params, norm, select
from fedelta.privacy.local import SitePrivacy
from fedelta.privacy.randomness import KEY_BYTES, Randomness, Secret, Seeded
from fedelta.privacy.settings import Privacy
from fedelta.strategies.base import RoundPlan
from fedelta.strategies.scaffold import Controls
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.head import Head

CLIP = 0.01
FLOAT32 = 1 + 1e-6  # what the rounding of the clipped delta, which without noise is what is sent, may add


def site_of(
    noise: float,
    method: TuningMethod = Head(),  # noqa: B008 a frozen value
    *,
    family: str = "vit",
    seed: int = 0,
    channel: Channel = Channel(),  # noqa: B008 likewise
    randomness: Randomness = Seeded(1),  # noqa: B008 likewise
    **client: object,
) -> Site:
    """A site with two clients; noise 0 shows what noise is added to."""
    settings = ClientSettings(**({"batch_size": 4, "lr": 0.5} | client))
    engine, _ = tiny_engine(method, tiny_data(family, seed=seed), family=family, lanes=2, client=settings)
    privacy = SitePrivacy(Privacy(unit="local", noise_multiplier=1.0, clipping_norm=CLIP), noise, randomness)
    partition = {0: torch.arange(0, 9), 1: torch.arange(9, 24)}
    return Site(engine, partition, channel, seed=0, num_rounds=4, privacy=privacy)


def replies_of(site: Site, upload: tuple[str, ...] | None = None, start: Params | None = None) -> dict[int, Reply]:
    start = start_of(site.engine) if start is None else start
    names = site.wire.names
    plan = RoundPlan(1, dict.fromkeys((0, 1), names), dict.fromkeys((0, 1), upload or names), 2)
    payload, _ = encode(start, site.wire, site.channel.down)
    return {reply.client_id: reply for reply in site.run(plan, dict.fromkeys((0, 1), payload))}


def sent(site: Site, upload: tuple[str, ...] | None = None, start: Params | None = None) -> dict[int, Params]:
    replies = replies_of(site, upload, start)
    assert [reply.fault for reply in replies.values()] == [None, None]
    return {client: decode(reply.payload, site.wire, site.channel.up)[0] for client, reply in replies.items()}


@pytest.mark.parametrize("name", METHODS)
def test_no_update_of_any_tuning_method_is_longer_than_the_clipping_norm_before_the_noise(name):
    family = next(family for family in ("vit", *CONVOLUTIONAL) if fits(name, family))
    plain = replace(site_of(0.0, METHODS[name], family=family), privacy=None)
    for client, delta in sent(plain).items():
        assert norm(delta) > CLIP, client  # so that there is something to clip
    for delta in sent(site_of(0.0, METHODS[name], family=family)).values():
        assert norm(delta) <= CLIP * FLOAT32
        assert norm(delta) == pytest.approx(CLIP)


def test_all_data_of_a_client_replaced_by_any_other_moves_its_update_by_twice_the_clipping_norm_at_most():
    updates = [sent(site_of(0.0, seed=seed, lr=lr))[0] for seed in range(4) for lr in (0.001, 0.5)]
    distances = [
        norm({name: one[name] - other[name] for name in one})
        for one in updates
        for other in updates
        if one is not other
    ]
    assert CLIP / 2 < max(distances) <= 2 * CLIP * FLOAT32


def test_only_the_tensors_that_a_client_sends_share_the_clipping_norm():
    delta = sent(site_of(0.0), upload=("classifier.bias",))[0]
    assert list(delta) == ["classifier.bias"]
    assert norm(delta) == pytest.approx(CLIP)


def test_no_training_loss_leaves_a_client_under_any_unit():
    site = site_of(1.0)
    assert site.privacy is not None
    for unit in ("local", "client"):
        privacy = replace(site.privacy, settings=Privacy(unit=unit, noise_multiplier=1.0))
        assert [reply.metrics for reply in replies_of(replace(site, privacy=privacy)).values()] == [{}, {}]


@pytest.mark.parametrize("codec", [Cast(name="float16"), Integers()], ids=["float16", "int8"])
def test_noise_comes_before_the_codec_and_its_residual(codec):
    site = site_of(1.0)
    noisy = sent(site)[0]
    coarse = site_of(1.0, channel=Channel(down=Cast(), up=codec))
    assert replies_of(coarse)[0].payload == encode(noisy, site.wire, codec)[0]
    if codec.feeds_back:
        decoded, _ = decode(encode(noisy, site.wire, codec)[0], site.wire, codec)
        memory = coarse.memories.staged(0)
        assert memory is not None
        assert_same_bits(memory.residual, {name: noisy[name] - decoded[name] for name in noisy})


def test_the_control_variate_of_scaffold_is_computed_from_the_noisy_update():
    steering = Controls()
    site = replace(site_of(1.0, optimizer={"name": "sgd", "momentum": 0.0}), steering=steering)
    zeros = steering.start(site.engine.spec)
    update = sent(site, start=start_of(site.engine) | zeros)[0]
    # 9 examples in batches of 4 are 3 steps, so Delta c = -delta / (3 * 0.5) where c = 0.
    controls = {
        f"{next(iter(zeros)).partition('classifier')[0]}{name}": -update[name] / 1.5 for name in site.engine.spec
    }
    assert_close(select(update, zeros), controls, rtol=1e-6, atol=0)
    assert norm(select(update, site.engine.spec)) > 2 * CLIP  # the noise has a norm of about CLIP sqrt(170)


def test_a_training_that_diverges_sends_noise_and_keeps_the_anchors_so_that_nothing_tells_of_it():
    site = site_of(1.0, lr=1e38, local_epochs=4)
    start, names = start_of(site.engine), site.wire.names  # training changes the engine's tensors
    assert replies_of(replace(site, privacy=None), start=start)[0].fault is not None
    update = sent(site, upload=names[:1], start=start)[0]
    assert norm(update) < 100 * CLIP
    memory = site.memories.staged(0)
    assert memory is not None
    assert_same_bits({name: drift.value for name, drift in memory.adrift.items()}, select(start, names[1:]))


def test_secret_noise_is_that_of_the_occasion():
    site = site_of(1.0, randomness=Secret(bytes(KEY_BYTES)))
    assert site.privacy is not None
    start = start_of(site.engine)
    first = sent(site, start=start)
    assert_same_bits(sent(site, start=start)[0], first[0])
    again = sent(replace(site, privacy=replace(site.privacy, occasions={0: "another"})), start=start)
    assert not torch.equal(again[0]["classifier.bias"], first[0]["classifier.bias"])
    assert_same_bits(again[1], first[1])
