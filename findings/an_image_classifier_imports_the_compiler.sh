#!/usr/bin/env bash
# transformers: importing an image classifier imports PyTorch's compiler, its distributed tensors and SciPy's optimizers
#
# Versions: transformers 5.23.0, torch 2.13.0, scipy 1.17.1, CPython 3.11.
#
# What one would expect: `from transformers import ViTForImageClassification` is lazy, and imports what a ViT runs. SciPy
# is an optional dependency of transformers, which no ViT needs.
#
# What happens: with SciPy installed, modules come along that a forward pass of a ViT never calls: 93 of the compiler
# (`torch._dynamo`, to mark a few functions for it), 35 of `torch.distributed.tensor`, and 91 of `scipy.optimize`, for
# the matching of boxes in the loss of object detectors, because a table of all losses is imported with every model. A
# process that does one short thing, such as a client that wakes up for a round, spends part of its start on them.
#
# What we do: the commands import transformers with stand-ins for these modules, which import the real ones when they
# are called.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" -q install --disable-pip-version-check torch==2.13.0 transformers==5.23.0 scipy==1.17.1
cat >"$folder/see.py" <<'PYTHON'
import sys

import torch

before = set(sys.modules)
from transformers import ViTConfig, ViTForImageClassification

sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=4, patch_size=4)
model = ViTForImageClassification(ViTConfig(**sizes))
model(torch.zeros(1, 3, 4, 4))
brought = set(sys.modules) - before
for name in ("torch._dynamo", "torch.distributed.tensor", "scipy.optimize"):
    print(name, sum(module == name or module.startswith(f"{name}.") for module in brought), "modules")
    assert name in brought, f"{name} is not imported any more"
PYTHON
"$folder/venv/bin/python" "$folder/see.py"
