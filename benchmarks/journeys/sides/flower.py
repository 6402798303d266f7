"""Flower: a ServerApp with FedAvg, a ClientApp and stock PEFT, in its simulation."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from given import clients, model, test
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn.functional import cross_entropy

tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["0", "2"], modules_to_save=["5"]))
data = list(clients.values())
client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def train(message, context):
    set_peft_model_state_dict(tuned, message.content["arrays"].to_torch_state_dict())
    images, labels = data[context.node_config["partition-id"]]
    optimizer = torch.optim.SGD([value for value in tuned.parameters() if value.requires_grad], lr=0.02, momentum=0.9)
    for _ in range(2):
        for rows in torch.randperm(len(labels)).split(16):
            optimizer.zero_grad()
            cross_entropy(tuned(images[rows]), labels[rows]).backward()
            optimizer.step()
    arrays = ArrayRecord(get_peft_model_state_dict(tuned))
    return Message(
        RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": len(labels)})}), reply_to=message
    )


def evaluate(_number, arrays):
    set_peft_model_state_dict(tuned, arrays.to_torch_state_dict())
    with torch.no_grad():
        return MetricRecord({"accuracy": (tuned(test[0]).argmax(1) == test[1]).float().mean().item()})


@server_app.main()
def serve(grid, _context):
    strategy = FedAvg(fraction_evaluate=0.0)
    start = ArrayRecord(get_peft_model_state_dict(tuned))
    result = strategy.start(grid, start, num_rounds=5, evaluate_fn=evaluate)
    print(result, result.evaluate_metrics_serverapp[5]["accuracy"])


run_simulation(server_app, client_app, num_supernodes=10)
