"""Both sides of the benchmark of language models do the same work."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import language


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21
def test_lanes_and_the_loop_on_stock_peft_have_the_same_losses():
    options = argparse.Namespace(
        hidden=32, layers=2, vocabulary=64, clients=3, batch=2, steps=2, shortest=6, longest=12, lanes=2
    )
    rows = language.tokens(options)
    ours, stock = (language.side(name, options, rows)() for name in ("lanes", "loop"))
    assert ours == pytest.approx(stock, rel=1e-5)
