#!/usr/bin/env bash
# torch: two 64-bit seeds that differ only above bit 32 give the same random numbers on a CPU
#
# Versions: torch 2.13.0, CPython 3.11.
#
# What one would expect: `Generator.manual_seed` takes 64-bit seeds and says nothing of ignoring half of them, and
# `initial_seed` gives all 64 bits back. Simulations of federated learning derive one seed for each client, round and
# purpose, often from 63 or 64 bits of a hash, so that no two streams are the same.
#
# What happens: on a CPU the generator starts from the lowest 32 bits. Seeds s and s + 2^32 give equal numbers, equal
# permutations and equal noise, so that among hashed seeds two are expected to collide after about 65,000 streams (a few
# hundred rounds with a hundred clients). Equal noise on the updates of two clients can be subtracted.
#
# What we do: noise and samples that protect somebody come from a keyed hash; streams of the seed say that they do not.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$folder/see.py" <<'PYTHON'
import torch

first, second = 5, 5 + 2**32
generators = [torch.Generator().manual_seed(seed) for seed in (first, second)]
print("seeds as the generators remember them:", [generator.initial_seed() for generator in generators])
assert [generator.initial_seed() for generator in generators] == [first, second]
for draw in (lambda g: torch.randn(1000, generator=g), lambda g: torch.randperm(1000, generator=g)):
    one, other = (draw(generator) for generator in generators)
    print("the same 1,000 numbers:", torch.equal(one, other))
    assert torch.equal(one, other), "seeds with other high bits give other numbers now"
PYTHON
"$folder/venv/bin/python" "$folder/see.py"
