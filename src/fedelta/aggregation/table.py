"""All aggregations that a strategy's `mean` can name."""

from __future__ import annotations

from fedelta.aggregation.means import Clipped, Uniform, Weighted
from fedelta.aggregation.robust import Median, Trimmed

AnyMean = Weighted | Uniform | Median | Trimmed | Clipped
