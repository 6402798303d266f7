"""Contracts that every method has to fulfil, built in or from a plug-in.

`contracts` returns them one by one, as callables named by a sentence, and `check` tries all of them at once. In the
tests of a plug-in:

    @pytest.mark.parametrize("contract", contracts("my_method.py"), ids=str)
    def test_contract(contract):
        contract()

The error of a broken contract names the contract and the difference. This mean forgets to divide by the weights:

>>> from typing import Literal
>>> from fedelta.aggregation.base import Mean
>>> from fedelta.aggregation.means import Weighted
>>> class Total(Mean):
...     name: Literal["total"] = "total"
...     of_statistics = property(lambda self: Weighted())
...     def start(self, spec):
...         return RunningTotal()
>>> class RunningTotal:
...     def __init__(self):
...         self.total = {}
...     def add(self, update):
...         for name, tensor in update.delta.items():
...             self.total[name] = self.total.get(name, 0.0) + tensor.double()
...     def finish(self, generator):
...         return self.total
>>> check(Total)
Traceback (most recent call last):
fedelta.errors.ContractError: 1 of 13 contracts are broken:
  - Total 'total': it points where all clients point. All clients send one `first.weight`, and the mean is 5 times it.
>>> [str(contract) for contract in contracts(Weighted)][:2]  # doctest: +NORMALIZE_WHITESPACE
["Weighted 'weighted': its settings are read back as they were written",
 "Weighted 'weighted': what it needs of updates is one of two words"]
>>> check(Weighted)

All draws are seeded, models and data are small ones that need no files, and everything together takes seconds.
"""

# Not `from __future__ import annotations`: the class in the example above is made of its annotations as they stand.
from fedelta.testing.collect import MODELS, check, contracts
from fedelta.testing.contract import Contract
from fedelta.testing.small import SMALL_MODELS

__all__ = ["MODELS", "SMALL_MODELS", "Contract", "check", "contracts"]
