"""How many arithmetic threads a pack has."""

from __future__ import annotations

import pytest
import torch
from tests.small import write_small

from fedelta.assembly import local
from fedelta.assembly.run import assemble
from fedelta.config import load_config
from fedelta.runtimes import settings


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (4, 2),  # one pack, as wide as the cohort
        (1, 1),  # a quota of one core
    ],
)
def test_a_quota_limits_the_threads_of_a_pack(cores: int, expected: int, tmp_path, monkeypatch: pytest.MonkeyPatch):
    for module in (local, settings):
        monkeypatch.setattr(module, "available_cores", lambda: cores)
    torch.set_num_threads(2)
    try:
        assembly = assemble(load_config(write_small(tmp_path), ["runtime.lanes=3", "runtime.device=cpu"]))
    finally:
        torch.set_num_threads(1)
    assert assembly.site.threads == expected
