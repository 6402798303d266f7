#!/usr/bin/env bash
# transformers: a GenerationConfig that is given to `generate` is filled up with settings of the checkpoint
#
# Versions: transformers 5.23.0, torch 2.13.0 (CPU), CPython 3.11.
#
# What one would expect: `model.generate(ids, generation_config=mine)` continues as `mine` says, for every checkpoint: its
# documentation calls it the base of the call, and `GenerationConfig()` without `repetition_penalty` has none.
#
# What happens: a field that is not set in `mine` is None, and takes the value of `model.generation_config`. A checkpoint
# whose `generation_config.json` has a repetition penalty applies it to greedy search too, so that the same call gives
# other texts for two checkpoints with equal weights. No message says so.
#
# What we do: while an answer is continued, the model's own configuration is an empty one (models/generation.py).
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/see.py" <<'PYTHON'
import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
model = LlamaForCausalLM(LlamaConfig(vocab_size=60, bos_token_id=0, eos_token_id=None, pad_token_id=1, **sizes))
ids = torch.tensor([[3, 4, 5]])
mine = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=1)
print(transformers.__version__, "`repetition_penalty` of my configuration:", mine.repetition_penalty)
plain = model.generate(ids, generation_config=mine)
print("checkpoint without a penalty:", plain[0].tolist())
model.generation_config.repetition_penalty = 5.0  # as `generation_config.json` of a checkpoint may say
filled = model.generate(ids, generation_config=mine)
print("checkpoint with a penalty:   ", filled[0].tolist())
assert not torch.equal(plain, filled), "the call follows the configuration that was given, whatever the checkpoint has"
PYTHON
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" -q install --disable-pip-version-check torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 "$folder/environment/bin/python" "$folder/see.py"
