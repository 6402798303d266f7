"""The site: trains those clients of the round's cohort that are its own, one after the other; replies their mean."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from stock_task import accuracy, load_data, load_model, load_round, train

app = ClientApp()


@app.train()
def train_site(message, context):
    folder, site = context.run_config["folder"], context.node_config["site"]
    work = load_round(folder, message.content["config"]["server-round"])
    model, data = load_model(folder), load_data(folder)
    received = message.content["arrays"].to_torch_state_dict()
    clients = [client for client in work["clients"] if client["site"] == site]
    num_examples = sum(client["num_examples"] for client in clients)
    mean = {name: torch.zeros_like(tensor) for name, tensor in received.items()}
    loss = 0.0
    for client in clients:
        set_peft_model_state_dict(model, received)
        share = client["num_examples"] / num_examples
        loss += share * train(model, data, client["batches"], work["lr"])
        for name, tensor in get_peft_model_state_dict(model).items():
            mean[name].add_(tensor, alpha=share)
    content = {
        "arrays": ArrayRecord(mean if clients else received),
        "metrics": MetricRecord({"train-loss": loss, "num-examples": num_examples}),
    }
    return Message(content=RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate_site(message, context):
    folder = context.run_config["folder"]
    model, data = load_model(folder), load_data(folder)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    metrics = {"accuracy": accuracy(model, data), "num-examples": len(data["test_labels"])}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
