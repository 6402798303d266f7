"""The other side of the deployment's benchmark does the same work: two rounds of it end at fedelta's parameters."""

from __future__ import annotations

import sys

import pytest
import torch
from benchmarks.stock_side import APP, prepare

from fedelta.assembly.run import assemble
from fedelta.config import load_config
from fedelta.federation.rounds import Standing, federate
from fedelta.inference.layout import to_layout

NUM_SITES = 2
SETTINGS = ("codec.name=float32", "strategy.num_rounds=2", "strategy.clients_per_round=3", "client.local_epochs=1")


@pytest.mark.slow  # imports PEFT, two models
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_stock_flower_trains_the_same_clients_on_the_same_batches(tmp_path, repository, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(APP), *sys.path])
    import stock_task
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    assembly = assemble(load_config(repository / "recipes" / "demo.toml", SETTINGS))
    prepare(assembly, tmp_path / "task", NUM_SITES)
    model, data = stock_task.load_model(tmp_path / "task"), stock_task.load_data(tmp_path / "task")
    params = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    for number in (1, 2):
        work = stock_task.load_round(tmp_path / "task", number)
        mean = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        for client in work["clients"]:
            set_peft_model_state_dict(model, params)
            stock_task.train(model, data, client["batches"], work["lr"])
            share = client["num_examples"] / sum(client["num_examples"] for client in work["clients"])
            for name, tensor in get_peft_model_state_dict(model).items():
                mean[name].add_(tensor, alpha=share)
        params = mean

    start = Standing(assembly.params, assembly.strategy.init(assembly.params, assembly.spec))
    *_, outcome = federate(assembly.federation, start)
    ours, _ = to_layout(assembly.model.tuning, outcome.params, assembly.backbone.anatomy)
    assert ours.keys() == params.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(params[name], tensor, atol=1e-4, rtol=1e-3)
