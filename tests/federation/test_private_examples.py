"""What a client uploads, with and without one of its examples: the bound of DP-SGD on the wire, for every modality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.golden.configurations import _EXITS as EXITS
from tests.golden.configurations import _SPEECH as SPEECH
from tests.golden.configurations import _text_configuration as text
from tests.small import CONVOLUTIONAL, SMALL, write_small
from tests.sounds import write_flat
from tests.test_regression_runs import configuration, write_images

from fedelta.assembly.run import Assembly, assemble
from fedelta.assembly.site import read_data
from fedelta.codecs.wire import decode, encode
from fedelta.config import load_config
from fedelta.errors import ConfigError, ModelError
from fedelta.federation.client import Site
from fedelta.federation.records import Reply
from fedelta.params import Params
from fedelta.strategies.base import RoundPlan

LIMIT = 0.1
# One step over all examples of a client, so that what it sends is a sum of gradients, up to a known factor.
ONE_STEP = (
    "client.local_epochs=1", "client.batch_size=200", "client.lr=1.0", "client.optimizer.name=sgd",
    "client.optimizer.momentum=0.0", "codec.name=float32", "privacy.unit=example", f"privacy.clipping_norm={LIMIT}",
    "privacy.noise_multiplier=8.0", "privacy.target_delta=0.01",
)  # fmt: skip


def sounds(folder: Path) -> str:
    return SPEECH.replace("SOURCE", str(write_flat(folder / "tones")))


def numbers(folder: Path) -> str:
    write_images(folder / "train.parquet", 60, seed=0)
    write_images(folder / "test.parquet", 10, seed=1)
    return configuration(folder).read_text()


CASES: dict[str, tuple[Callable[[Path], str], tuple[str, ...]]] = {
    "images": (lambda _: SMALL, ()),
    "images, crops": (lambda _: SMALL, ("augmentation.crop_padding=2", "augmentation.flip=true")),
    "images, dropout": (lambda _: SMALL, ("tuning.name=prompt", "tuning.r=", "tuning.dropout=0.5")),
    "images, cached features": (lambda _: SMALL, ("tuning.name=head", "tuning.r=")),
    "images, groups": (lambda _: SMALL, ("privacy.clipping=per-group",)),
    "convolutions": (lambda _: CONVOLUTIONAL, ("model.batch_norm=group",)),
    "texts of unequal length": (text, ()),
    "recordings": (sounds, ()),
    "numbers as labels": (numbers, ("tuning.name=lora",)),
    "two depths": (lambda _: EXITS, ()),
}  # fmt: skip


def assembled(folder: Path, case: str, *overrides: str) -> Assembly:
    write, more = CASES[case]
    return assemble(load_config(write_small(folder, text=write(folder)), [*ONE_STEP, *more, *overrides]))


def plan_of(assembly: Assembly, client: int) -> RoundPlan:
    names = assembly.spec.shared if assembly.tiers is None else assembly.site.held(client)
    return RoundPlan(1, num_clients=1, download={client: names}, upload={client: names})


def reply_of(assembly: Assembly, site: Site, client: int) -> Reply:
    plan = plan_of(assembly, client)
    sent = {name: assembly.params[name] for name in plan.download[client]}
    payload, _ = encode(sent, assembly.federation.wire, assembly.config.codec.down)
    [reply] = site.run(plan, {client: payload})
    return reply


def upload(assembly: Assembly, client: int, rows: torch.Tensor) -> Params:
    """The sum of clipped gradients and noise that the upload holds: with lr 1 it is minus the delta times n."""
    site = replace(assembly.site, partition={**assembly.site.partition, client: rows})
    delta, _ = decode(reply_of(assembly, site, client).payload, assembly.federation.wire, assembly.config.codec.up)
    return {name: -tensor.double() * len(rows) for name, tensor in delta.items()}


def distance(one: Params, other: Params) -> float:
    return float(torch.stack([(one[name] - other[name]).square().sum() for name in one]).sum().sqrt())


@pytest.mark.parametrize("case", CASES)
def test_an_upload_changes_by_the_clipping_norm_at_most_when_an_example_leaves(tmp_path: Path, case: str):
    assembly = assembled(tmp_path, case)
    client = max(assembly.site.partition, key=lambda client: len(assembly.site.partition[client]))
    rows = assembly.site.partition[client][:6]
    whole = upload(assembly, client, rows)
    # The noise is that of client, round and step, and the same for both data sets.
    changes = [distance(whole, upload(assembly, client, rows[torch.arange(6) != gone])) for gone in range(6)]
    assert max(changes) <= LIMIT * 1.01  # float32 on the wire
    assert max(changes) >= LIMIT * 0.5  # something is clipped, and the bound no empty one


def test_a_private_client_tells_no_loss(tmp_path: Path):
    assembly = assembled(tmp_path, "images")
    assert reply_of(assembly, assembly.site, 0).metrics == {}


@pytest.mark.parametrize("unit", ["example", "client"])
def test_a_row_that_is_there_twice_is_refused_where_rows_are_protected(tmp_path: Path, unit: str):
    config = load_config(write_small(tmp_path), [*ONE_STEP, f"privacy.unit={unit}"])
    backbone, data = read_data(config)
    twice = replace(data, partition=data.partition | {0: torch.cat([data.partition[0], data.partition[1][:2]])})
    if unit == "client":
        assert assemble(config, backbone=backbone, data=twice).federation.central is not None
        return
    with pytest.raises(ConfigError, match="2 rows of the clients are there before: each row counts once"):
        assemble(config, backbone=backbone, data=twice)


def test_batch_norm_is_refused_before_round_1(tmp_path: Path):
    with pytest.raises(ModelError, match="layers of batch norm, first `bn1`, compute with mean and variance"):
        assembled(tmp_path, "convolutions", "model.batch_norm=average")


def test_with_fedpefts_noise_a_client_has_the_batches_that_it_has_without_privacy(tmp_path: Path):
    work = ("client.batch_size=4", "client.local_epochs=2", "client.lr=0.01")
    # Epsilon of 1e12 is a deviation of 1e-5 or so.
    fedpeft = ("privacy.mechanism=fedpeft-code", "privacy.noise_multiplier=", "privacy.target_epsilon=1e12")
    none = ("privacy.unit=none", "privacy.noise_multiplier=", "privacy.clipping_norm=", "privacy.target_delta=")
    deltas = []
    for overrides in (fedpeft, none):
        assembly = assembled(tmp_path, "images", *overrides, *work)
        deltas.append(upload(assembly, 0, assembly.site.partition[0]))
    assert distance(*deltas) <= 1e-3 * distance(deltas[0], {name: 0 * tensor for name, tensor in deltas[0].items()})
