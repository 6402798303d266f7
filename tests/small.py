"""Runs that take a second: real digits, a tiny random network, a few clients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL = """
seed = 3

[model.architecture]
model_type = "vit"
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 64
image_size = 16
patch_size = 8

[tuning]
name = "lora"
r = 2

[data]
source = "digits"
max_train_examples = 120
max_test_examples = 60

[partition]
name = "dirichlet"
num_clients = 6
alpha = 0.5
min_size = 4

[strategy]
name = "fedavg"
clients_per_round = 3
num_rounds = 3

[client]
local_epochs = 1
batch_size = 8
lr = 0.1

[codec]
name = "float16"
"""

_HEADER, _REST = SMALL.split("[model.architecture]")
CONVOLUTIONAL = f"""{_HEADER}
[model.architecture]
model_type = "resnet20"
stem_width = 8
widths = [8, 16]
blocks_per_stage = 1
image_size = 16

[tuning]
name = "parallel"

{_REST[_REST.index("[data]") : _REST.index("[codec]")]}"""


def write_small(folder: Path, name: str = "small.toml", text: str = SMALL) -> Path:
    """The configuration as a file."""
    path = folder / name
    path.write_text(text)
    return path


def stop_after(round: int) -> Callable[[Any, Any], None]:
    """For `on_round`: a run that is interrupted as by Ctrl-C after `round`."""

    def stop(outcome: Any, ledger: Any) -> None:
        if outcome.round == round:
            raise KeyboardInterrupt

    return stop
