"""What the server's side warns of when it is built."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tests.small import write_small

from fedelta.assembly.run import assemble
from fedelta.config import load_config


@pytest.mark.parametrize(
    ("settings", "is_told"),
    [
        # 3 of 6 clients in 3 rounds: 1.5 times; in 4 rounds: twice.
        (["codec.name=int4"], True),
        (["codec.up.name=top-k", "strategy.num_rounds=4"], False),
        (["codec.name=int4", "codec.error_feedback=false"], False),
        (["codec.name=float16"], False),
    ],
)
def test_a_residual_that_is_hardly_ever_sent_is_told(
    settings: list[str], is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, logger="fedelta"):
        assemble(load_config(write_small(tmp_path), settings))
    text = "a client takes part in 1.5 of 3 rounds in the mean: most of what codec 'int4' leaves out of an upload"
    assert (text in caplog.text) == is_told
    assert is_told or "leaves out of an upload" not in caplog.text
