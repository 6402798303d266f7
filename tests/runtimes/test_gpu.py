"""On a GPU: a worker process that builds its site there, and a whole run."""

from __future__ import annotations

import pytest
import torch
from tests.builders import assert_same_bits
from tests.small import write_small

from fedelta.assembly.run import Assembly, assemble
from fedelta.config import load_config
from fedelta.federation.base import Standing
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.runtimes.settings import RuntimeSettings

pytestmark = pytest.mark.gpu


def assembled(tmp_path, *overrides: str) -> Assembly:
    choices = ("strategy.num_rounds=2", "runtime.device=cuda", "runtime.lanes=1", *overrides)
    return assemble(load_config(write_small(tmp_path), choices))


def rounds(assembly: Assembly) -> list[RoundOutcome]:
    standing = Standing(assembly.params, assembly.strategy.init(assembly.params, assembly.spec))
    with assembly.at_work():
        return list(federate(assembly.federation, standing))


def test_a_worker_on_the_gpu_gives_the_bits_of_one_process(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RuntimeSettings, "places", property(lambda runtime: 2))
    alone = rounds(assembled(tmp_path, "runtime.name=simulation"))
    assembly = assembled(tmp_path, "runtime.name=processes", "runtime.workers=1")
    assert assembly.processes is not None
    for outcome, expected in zip(rounds(assembly), alone, strict=True):
        assert_same_bits(outcome.params, expected.params)


def test_a_gpu_gives_the_measures_of_the_cpu(tmp_path):
    on_gpu, on_cpu = (rounds(assembled(tmp_path, f"runtime.device={device}"))[-1] for device in ("cuda", "cpu"))
    for name, value in on_cpu.evaluation.measures.items():
        assert on_gpu.evaluation.measures[name] == pytest.approx(value, abs=0.02)
    assert all(tensor.device == torch.device("cpu") for tensor in on_gpu.params.values())
