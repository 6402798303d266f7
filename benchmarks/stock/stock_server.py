"""The server: Flower's FedAvg, and the accuracy on the test set after every round, as fedelta measures it."""

import json
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from stock_task import accuracy, load_data, load_model

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    folder = config["folder"]
    model, data = load_model(folder), load_data(folder)
    ends = []

    def evaluate(server_round, arrays):
        set_peft_model_state_dict(model, arrays.to_torch_state_dict())
        ends.append({"round": server_round, "accuracy": accuracy(model, data), "time_s": time.time()})
        (Path(folder) / "ends.json").write_text(json.dumps(ends))
        return MetricRecord({"accuracy": ends[-1]["accuracy"]})

    strategy = FedAvg(
        fraction_evaluate=config["fraction-evaluate"],
        min_available_nodes=config["num-sites"],
        min_train_nodes=config["num-sites"],
    )
    start = ArrayRecord(get_peft_model_state_dict(model))
    result = strategy.start(grid, start, num_rounds=config["num-rounds"], evaluate_fn=evaluate)
    torch.save(result.arrays.to_torch_state_dict(), Path(folder) / "final.pt")
