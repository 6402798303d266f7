"""fedelta: one call."""

from given import clients, model, test

import fedelta

strategy = fedelta.FedAvg(num_rounds=5, clients_per_round=10)
client = fedelta.ClientSettings(lr=0.02, local_epochs=2, batch_size=16)
result = fedelta.federate(model, clients, test, tuning="lora", strategy=strategy, client=client)
print(result.page, result.ledger.total_bytes, result.measures["accuracy"])
