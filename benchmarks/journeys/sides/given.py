"""What each side has at its start: a trained CNN, the tensors of ten clients, and test tensors."""

import os

import torch
from network import cnn

kept = torch.load(os.environ["JOURNEY_FILE"], weights_only=True)
model = cnn()
model.load_state_dict(kept["weights"])
clients: dict[str, tuple[torch.Tensor, torch.Tensor]] = kept["clients"]
test: tuple[torch.Tensor, torch.Tensor] = kept["test"]
