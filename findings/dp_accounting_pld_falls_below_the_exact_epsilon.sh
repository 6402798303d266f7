#!/usr/bin/env bash
# dp-accounting: at very small delta the epsilon from privacy loss distributions is below the exact one
#
# Versions: dp-accounting 0.6.0, numpy 2.4.6, scipy 1.17.1, CPython 3.11.
#
# What one would expect: `from_gaussian_mechanism(..., pessimistic_estimate=True)`, the default, rounds every loss up, so
# that the epsilon of a composition is an upper bound at every delta for which it is finite.
#
# What happens: for a Gaussian mechanism the exact epsilon is known (Balle and Wang 2018, theorem 8). After 3,000
# compositions of one with noise multiplier 40 the library is a little below it at delta 1e-10, and by more than 0.05 at
# 1e-14. The probabilities of the composed distribution come from Fourier transforms, whose rounding errors are as large
# as such a delta.
#
# What we do: the rounding error is taken off delta before epsilon is asked for, and Gaussian mechanisms without sampling
# are computed by the formula.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check dp-accounting==0.6.0 numpy==2.4.6 scipy==1.17.1
cat >"$folder/see.py" <<'PYTHON'
import math

from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

NOISE, TIMES = 40.0, 3000
mu = math.sqrt(TIMES) / NOISE


def exact(delta):
    def excess(epsilon):
        tail = math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
        return (ndtr(mu / 2 - epsilon / mu) - tail) / delta - 1

    return brentq(excess, 0.0, 100.0)


losses = from_gaussian_mechanism(NOISE, value_discretization_interval=1e-4).self_compose(TIMES)
difference = {}
for delta in (1e-5, 1e-10, 1e-12, 1e-14):
    epsilon = losses.get_epsilon_for_delta(delta)
    difference[delta] = epsilon - exact(delta)
    print(f"delta {delta:g}: library {epsilon:.5f}, exact {exact(delta):.5f}")
assert difference[1e-5] > 0
assert difference[1e-14] < -0.05, "the library's epsilon is no longer below the exact one"
PYTHON
"$folder/venv/bin/python" "$folder/see.py"
