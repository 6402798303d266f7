#!/usr/bin/env bash
# safetensors: the order of tensors after `load`, and the bytes of `save` with metadata, change from process to process
#
# Versions: safetensors 0.8.0, numpy 2.3.5, CPython 3.11.
#
# What one would expect: a dictionary that was saved and loaded has its keys in one order, the saved or the sorted one,
# and equal tensors with equal metadata give equal bytes. Federated code relies on both: weights travel as a list of
# arrays by position (`list(state.values())`), and a payload or checkpoint is compared with another by its hash.
#
# What happens: the same bytes give another order of keys in every process when they are read with `load` (from bytes);
# `load_file` gives one order. And `save` with several entries of metadata writes them in another order in every
# process, so that equal content has different hashes. With one entry of metadata, or none, the bytes are equal.
#
# What we do: tensors are looked up by name, names are kept beside them where order matters, and metadata is one entry.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check safetensors==0.8.0 numpy==2.3.5
cat >"$folder/see.py" <<'PYTHON'
import hashlib
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load, load_file, save

path = Path(sys.argv[1])
tensors = {name: np.zeros(2, np.float32) for name in "zyxwabcd"}
if not path.exists():
    path.write_bytes(save(tensors))
names = {f"key{number}": "value" for number in range(8)}
print(
    "".join(load(path.read_bytes())),
    "".join(load_file(path)),
    hashlib.sha256(save(tensors)).hexdigest()[:8],
    hashlib.sha256(save(tensors, {"only": "value"})).hexdigest()[:8],
    hashlib.sha256(save(tensors, names)).hexdigest()[:8],
)
PYTHON
for _ in 1 2 3 4 5 6; do "$folder/venv/bin/python" "$folder/see.py" "$folder/same.safetensors"; done | tee "$folder/seen"
different() { cut -d' ' -f"$1" "$folder/seen" | sort -u | wc -l; }
echo "of 6 processes: $(different 1) orders by load, $(different 2) by load_file; $(different 3) hashes without metadata," \
  "$(different 4) with one entry, $(different 5) with eight"
[ "$(different 1)" -gt 1 ] && [ "$(different 2)" -eq 1 ] && [ "$(different 3)" -eq 1 ] && [ "$(different 4)" -eq 1 ] \
  && [ "$(different 5)" -gt 1 ]
