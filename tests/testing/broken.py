"""What contracts say of a method that was broken on purpose."""

from __future__ import annotations

from collections.abc import Sequence

from fedelta.errors import ContractError
from fedelta.testing import contracts


def broken(what: object, models: Sequence[str] = ("vit",), only: str = "") -> dict[str, str]:
    """Sentence to message of the contracts that do not hold.

    Args:
        what: a class of settings, or a value.
        models: that a tuning method is tried on.
        only: a part of the sentences that are tried.
    """
    messages: dict[str, str] = {}
    for contract in contracts(what, models=models):
        if only in contract.sentence:
            try:
                contract()
            except ContractError as error:
                messages.setdefault(contract.sentence, str(error))
    return messages
