#!/usr/bin/env bash
# transformers, MRA: where its CUDA kernel is not there, attention is a tensor of zeros, without an error
#
# Versions: transformers 5.23.0, torch 2.13.0 (CPU).
#
# What one would expect: a model that can be built, run and trained on a CPU attends as it does on a GPU, only slower,
# or says that it needs the kernel. An adapter on its query and value projections (LoRA's usual place) then learns.
#
# What happens: the forward pass gives logits and a loss, but all that attention gives is zeros, and the query, key and
# value projections get no gradient at all (`grad` is None after `backward`). LoRA there would be trained, sent and
# averaged round after round for nothing.
#
# What we do: a tuning method of whose tensors no answer depends on any is refused before round 1.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cat >"$folder/see.py" <<'PYTHON'
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

torch.manual_seed(0)
config = AutoConfig.for_model(
    "mra", vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=256, num_labels=2, block_per_row=2,
)
model = AutoModelForSequenceClassification.from_config(config).eval()
ids = torch.randint(2, 50, (2, 128))
told = []
model.mra.encoder.layer[0].attention.self.register_forward_hook(lambda module, args, output: told.append(output[0]))
model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([0, 1])).loss.backward()
projections = [name for name, _ in model.named_parameters() if name.split(".")[-2] in ("query", "key", "value")]
trained = [name for name in projections if model.get_parameter(name).grad is not None]
print(f"largest number that attention gives: {told[0].abs().max().item()}")
print(f"parameters of queries, keys and values with a gradient: {len(trained)} of {len(projections)}")
print(f"the head has a gradient: {model.classifier.dense.weight.grad.abs().sum().item() > 0}")
raise SystemExit(not (told[0].abs().max() == 0 and not trained and projections))
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/see.py" 2>/dev/null
