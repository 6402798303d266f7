#!/usr/bin/env bash
# dp-accounting: under REPLACE_ONE the two accountants take one noise multiplier relative to two sensitivities
#
# Versions: dp-accounting 0.6.0, CPython 3.11.
#
# What one would expect: two upper bounds of the epsilon of the same event under the same neighbouring relation differ by
# a few percent, and the one from privacy loss distributions (PLD) is the smaller one.
#
# What happens: for a Gaussian mechanism without sampling under REPLACE_ONE, the accountant by Renyi divergence (RDP)
# answers as under ADD_OR_REMOVE_ONE: it takes the noise relative to the distance of two neighbouring results. The PLD
# accountant takes it relative to the contribution of one record, of which one is removed and another one is added, so
# that the distance is twice that. RDP then says an epsilon of less than half of PLD's. Whoever takes the smaller one of
# the two as the tighter bound claims a privacy that the mechanism does not have, if noise is measured in the other way.
#
# What we do: every event is counted under ADD_OR_REMOVE_ONE, and where a unit is replaced by another, the noise
# multiplier is halved before.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check dp-accounting==0.6.0
cat >"$folder/see.py" <<'PYTHON'
from dp_accounting import GaussianDpEvent, NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

relations = NeighboringRelation.ADD_OR_REMOVE_ONE, NeighboringRelation.REPLACE_ONE
epsilon = {}
for relation in relations:
    for make in (RdpAccountant, PLDAccountant):
        accountant = make(neighboring_relation=relation)
        accountant.compose(GaussianDpEvent(1.0), 8)
        epsilon[relation.name, make.__name__] = accountant.get_epsilon(1e-3)
        print(f"{relation.name:18} {make.__name__:14} epsilon {epsilon[relation.name, make.__name__]:.3f}")
added, replaced = (relation.name for relation in relations)
assert epsilon[added, "PLDAccountant"] < epsilon[added, "RdpAccountant"]
assert epsilon[replaced, "RdpAccountant"] == epsilon[added, "RdpAccountant"]
assert epsilon[replaced, "PLDAccountant"] > 2 * epsilon[replaced, "RdpAccountant"], "the two agree now"
PYTHON
"$folder/venv/bin/python" "$folder/see.py"
