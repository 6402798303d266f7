"""Federated evaluation: each site sends the sums of the task's measures over its own test rows, never a row."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedelta.errors import PayloadError
from fedelta.params import Params
from fedelta.record.files import Record
from fedelta.record.sites import OwnMeasures
from fedelta.runtimes.remote.answers import sums_in, whole
from fedelta.runtimes.remote.runtime import Remote
from fedelta.tasks.base import Evaluation, Sums, Task
from fedelta.tasks.contract import evaluation_of

logger = logging.getLogger("fedelta")


@dataclass
class SiteMeasures:
    """Asks the sites for their measures.

    Args:
        remote: reaches the sites.
        task: of the run.
        num_exits: of the model; 0 for a model without exits.
        last: site to what it has measured when it was last asked.
    """

    remote: Remote
    task: Task
    num_exits: int = 0
    last: Mapping[str, OwnMeasures] = field(default_factory=dict)

    def evaluate(self, params: Params, *, with_answers: bool = False) -> Evaluation | None:
        """The measures over the test rows of all sites that answer; None if none does.

        Args:
            params: of the server.
            with_answers: whether a language model answers prompts, too.
        """
        evaluations = self._ask(params, with_answers=with_answers)
        if not evaluations:
            return None
        totals = [sums for sums, _ in evaluations.values()]
        added = [sum(at_exit, Sums()) for at_exit in zip(*totals, strict=True)]
        return self._evaluation(added)

    def measure(self, params: Params, *, with_answers: bool = False) -> dict[str, Record]:
        """Site to what its entry in the record gets, of the sites that answer; arguments as for `evaluate`."""
        self._ask(params, with_answers=with_answers)
        return self.records

    @property
    def records(self) -> dict[str, Record]:
        """Site to what its entry in the record gets, as it was last measured."""
        return {site: measures.as_record() for site, measures in self.last.items()}

    def _ask(self, params: Params, *, with_answers: bool) -> dict[str, tuple[list[Sums], int]]:
        """The sums at each exit and the number of examples of each site whose answer can be used."""
        usable: dict[str, tuple[list[Sums], int]] = {}
        measures: dict[str, OwnMeasures] = {}
        for site, manifest in sorted(self.remote.measure(params, with_answers=with_answers).items()):
            try:
                sums, num_examples = read_sums(manifest)
                evaluation = self._evaluation(sums)
            except PayloadError as error:
                logger.warning("site %r: its measures cannot be used: %s", site, error.message)
                continue
            usable[site] = sums, num_examples
            measures[site] = OwnMeasures(evaluation.measures, num_examples)
        self.last = measures
        return usable

    def _evaluation(self, sums: list[Sums]) -> Evaluation:
        """The measures of sums at each exit.

        Raises:
            PayloadError: sums are missing, or are not those of any answers.
        """
        if len(sums) != (expected := max(1, self.num_exits)):
            raise PayloadError(f"it has sums at {len(sums)} exits, expected {expected}")
        try:
            evaluation = evaluation_of(self.task, sums, has_exits=self.num_exits > 0)
        except (KeyError, ZeroDivisionError, ValueError, OverflowError) as error:
            raise PayloadError(f"no measures follow from its sums: {error!r}") from error
        if evaluation.not_finite is not None:
            raise PayloadError(f"its `{evaluation.not_finite}` is not finite")
        return evaluation


def read_sums(manifest: Mapping[str, Any]) -> tuple[list[Sums], int]:
    """The sums at each exit, lowest first (one list entry without exits), and the number of examples behind them.

    Args:
        manifest: of the answer of a site; Any: JSON values, none of which is trusted.

    Raises:
        PayloadError: it has another form.
    """
    by_exit = manifest.get("sums")
    if not isinstance(by_exit, list) or not by_exit:
        raise PayloadError("`sums` is no list of sums at each exit")
    num_examples = whole(manifest.get("num_examples"), "num_examples", least=1)
    return [sums_in(at_exit, "sums") for at_exit in by_exit], num_examples
