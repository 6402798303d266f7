"""The round loop: plan, send, train, check, combine, evaluate.

Everything that differs between algorithms, byte formats and places where clients run is behind the protocols that a
`Federation` holds. `Intake` (replies.py) checks the replies and adds them up in ascending client id, so that no result
depends on their order of arrival.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median

from fedelta.codecs.changes import Mirror
from fedelta.codecs.wire import encode
from fedelta.errors import PayloadError, RoundError
from fedelta.federation.base import Federation, Standing, too_few
from fedelta.federation.contract import check_plan, check_private_plan
from fedelta.federation.records import LOST, Rejection, RoundOutcome, Transfer
from fedelta.federation.replies import Accepted, Intake
from fedelta.params import Params, ParamSpec, is_finite, select
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.shown import shown_epsilon
from fedelta.privacy.state import PrivacyState, Spent
from fedelta.seeds import derive
from fedelta.strategies.base import Form, RoundPlan
from fedelta.tasks.base import Evaluation

logger = logging.getLogger("fedelta")

_DIVERGED_HINT = "lower `client.lr` or `strategy.server_lr`."


def federate(federation: Federation, standing: Standing) -> Iterator[RoundOutcome]:
    """Runs the remaining rounds and yields each when it is complete.

    Raises:
        RoundError: too few usable replies, or params that are no longer finite.
    """
    # A server may have been killed in this round, with the uploads of clients that are not there any more.
    may_repeat = bool(federation.site_of)
    goes_on = _goes_on(federation, standing)
    while goes_on:
        outcome = _round(federation, standing, _plan(federation, standing), may_repeat=may_repeat)
        may_repeat = False
        standing = _after(standing, outcome)
        goes_on = _goes_on(federation, standing)
        evaluation = _evaluation(federation, outcome.params, outcome.round, is_last=not goes_on)
        # The sites may have taken part in the evaluation.
        yield replace(outcome, evaluation=evaluation, sites=tuple(federation.attendance()))

    if standing.rounds_done < federation.strategy.num_rounds and not _spent(federation, standing.bytes_sent):
        _note_budget(federation, standing)


def _after(standing: Standing, outcome: RoundOutcome) -> Standing:
    bytes_sent = standing.bytes_sent + _total_bytes(outcome.transfers)
    return Standing(
        outcome.params, outcome.state, outcome.round, bytes_sent, outcome.claimed, outcome.privacy, outcome.mirror
    )


def _goes_on(federation: Federation, standing: Standing) -> bool:
    """Whether another round begins after `standing`."""
    if standing.rounds_done >= federation.strategy.num_rounds or _spent(federation, standing.bytes_sent):
        return False
    return _may_begin(federation, standing)


def _plan(federation: Federation, standing: Standing) -> RoundPlan:
    """The plan of the round after `standing`."""
    state, round = standing.state, standing.rounds_done + 1
    plan = federation.strategy.plan(state, round, federation.in_order, federation.spec, federation.draws(round))
    if federation.has_plugin:
        check_plan(federation, plan, state, round)
    if federation.central is not None:
        check_private_plan(federation, plan)
    return _fitted(federation, plan)


def _fitted(federation: Federation, plan: RoundPlan) -> RoundPlan:
    """`plan` with what low-rank aggregation changes, limited to what each client holds."""
    plan = plan if federation.pairs is None else federation.pairs.adapted(plan)
    return plan if federation.tiers is None else federation.tiers.restrict(plan)


def _may_begin(federation: Federation, standing: Standing) -> bool:
    """Whether the next round stays within the privacy budget, if there is one."""
    guarantee = federation.privacy
    if guarantee is None or guarantee.limit is None:
        return True
    return guarantee.allows(_spent_with_next(federation, guarantee, standing))


def _spent_with_next(federation: Federation, guarantee: Guarantee, standing: Standing) -> Spent:
    """What will have been released if all clients of the next round reply."""
    plan = _plan(federation, standing)
    return guarantee.after(standing.privacy, plan.round, plan.cohort).spent


def _note_budget(federation: Federation, standing: Standing) -> None:
    """Logs that the privacy budget ends the run."""
    if (guarantee := federation.privacy) is not None:
        logger.warning(
            "the privacy budget ends the run after round %d of %d: epsilon is %s of at most %g, and round %d would "
            "make it %s.",
            standing.rounds_done,
            federation.strategy.num_rounds,
            _shown(guarantee, standing.privacy.spent),
            guarantee.limit,
            standing.rounds_done + 1,
            _shown(guarantee, _spent_with_next(federation, guarantee, standing)),
        )


def _shown(guarantee: Guarantee, spent: Spent) -> str:
    """The epsilon of `spent` in words."""
    return shown_epsilon(guarantee.epsilon(spent))


def _round(federation: Federation, standing: Standing, plan: RoundPlan, *, may_repeat: bool) -> RoundOutcome:
    """Runs the round after `standing`.

    `may_repeat`: whether clients that are away now may have sent an upload before the server was killed.
    """
    params, state, round = standing.params, standing.state, standing.rounds_done + 1
    sending = _Sending(federation, plan, {**state, **params}, standing.mirror)
    payloads, downloads = sending.send()
    intake = Intake(federation, plan, standing)

    second: list[Transfer] = []  # downloads of clients that forgot what they kept

    def complete(client_ids: Collection[int]) -> tuple[RoundPlan, dict[int, bytes]]:
        again, transfers = sending.send_whole(client_ids)
        second.extend(transfers)
        return sending.plan, again

    intake.gather(federation.runtime, payloads, complete)
    if counts := _counts(federation, plan, intake):
        params, state = intake.combine(params, state)
    _require_finite(round, {**state, **params})
    accepted = intake.accepted if counts else []
    federation.runtime.accept(reply.client_id for reply in accepted)
    transfers = _arrived(downloads, second, intake.unreached) + intake.transfers
    rejections = intake.rejections
    privacy, guarantee = _released(federation, standing, plan, intake, may_repeat=may_repeat), federation.privacy
    if not counts:
        rejections += [Rejection(reply.client_id, "too few replies", "void round") for reply in intake.accepted]
    return RoundOutcome(
        round=round,
        params=params,
        state=state,
        cohort=plan.cohort,
        rejections=tuple(sorted(rejections, key=lambda rejection: rejection.client_id)),
        transfers=tuple(transfers),
        num_examples=sum(reply.num_examples for reply in accepted),
        train_loss=_train_loss(accepted),
        evaluation=None,
        delta_norm=median(reply.delta_norm for reply in accepted) if accepted and federation.central is None else None,
        simulated_seconds=intake.simulated_seconds,
        synced_fraction=_synced_fraction(federation.spec, intake.averaged if counts else frozenset()),
        logged={name: tuple(state[name].tolist()) for name in federation.strategy.logged},
        claims=tuple(intake.claims),
        claimed=intake.claimed if counts else standing.claimed,
        privacy=privacy,
        epsilons=None if guarantee is None else guarantee.epsilons(privacy.spent),
        clipping_norm=intake.clipping_norm,
        mirror=sending.mirror_after(accepted),
    )


def _released(
    federation: Federation, standing: Standing, plan: RoundPlan, intake: Intake, *, may_repeat: bool
) -> PrivacyState:
    """What has been released when the round is over; arguments as for `_round`."""
    privacy, guarantee = standing.privacy, federation.privacy
    if guarantee is not None:
        client_ids = set(plan.cohort) if may_repeat else set(plan.cohort) - intake.unreached
        privacy = guarantee.after(privacy, plan.round, client_ids)
    if intake.next_norm is not None:
        privacy = replace(privacy, clipping_norm=intake.next_norm, labels=intake.labels)
    return privacy


class _Sending:
    """The downloads of a round.

    Args:
        federation: what stays the same from round to round.
        plan: of the round.
        tensors: all that can travel.
        mirror: what clients hold, before the round.

    Attributes:
        plan: with whole downloads for the clients that got one.
    """

    def __init__(self, federation: Federation, plan: RoundPlan, tensors: Params, mirror: Mirror) -> None:
        self.plan = plan
        self._federation, self._tensors, self._mirror = federation, tensors, mirror

    def send(self, client_ids: Collection[int] | None = None) -> tuple[dict[int, bytes], list[Transfer]]:
        """Encodes the download of each client (default: of the cohort); the same tensors are encoded once."""
        plan, changes = self.plan, self._federation.channel.sends_changes
        cohort = plan.cohort if client_ids is None else sorted(client_ids)
        if changes:
            self._advance({name for client_id in cohort for name in plan.download[client_id]})
        encoded: dict[tuple[tuple[str, ...], Form, tuple[int, ...]], tuple[bytes, dict[str, int]]] = {}
        ranks = {client_id: self._federation.rank_of(client_id) for client_id in cohort}
        forms = {rank: self._federation.forms.form_of(self._tensors, rank) for rank in set(ranks.values())}
        payloads: dict[int, bytes] = {}
        transfers = []
        for client_id in cohort:
            names = plan.download[client_id]
            known = self._mirror.since(client_id, names) if changes else ()
            key = names, forms[ranks[client_id]], known
            if key not in encoded:
                encoded[key] = self._encode(*key)
            payloads[client_id], groups = encoded[key]
            transfers.append(Transfer(plan.round, client_id, "down", len(payloads[client_id]), groups))
        return payloads, transfers

    def send_whole(self, client_ids: Collection[int]) -> tuple[dict[int, bytes], list[Transfer]]:
        """Encodes for these clients every tensor that they hold, as they keep nothing any more."""
        federation = self._federation
        download = {**self.plan.download, **dict.fromkeys(client_ids, federation.wire.shared)}
        self.plan = _fitted(federation, replace(self.plan, download=download))
        if federation.channel.sends_changes:
            self._mirror = self._mirror.forgotten(client_ids)
        return self.send(client_ids)

    def mirror_after(self, accepted: Sequence[Accepted]) -> Mirror:
        """What clients hold after the round; a client keeps its download if its reply counts."""
        if not self._federation.channel.sends_changes:
            return self._mirror
        return self._mirror.kept({reply.client_id: self.plan.download[reply.client_id] for reply in accepted})

    def _advance(self, names: Collection[str]) -> None:
        """Changes the mirrored values of these tensors to those of this round."""
        federation, round = self._federation, self.plan.round
        values = {name: self._tensors[name] for name in federation.wire if name in names}
        draws = derive(federation.seed, "codec", "down", round)
        with _told(round):
            self._mirror = self._mirror.advanced(round, values, federation.wire, federation.channel.down, draws)

    def _encode(self, names: tuple[str, ...], form: Form, known: tuple[int, ...]) -> tuple[bytes, dict[str, int]]:
        """The payload of these tensors, and their bytes by group.

        Args:
            names: of the tensors.
            form: of the payload.
            known: the rounds of what the clients hold, if downloads carry changes.
        """
        federation, channel, round = self._federation, self._federation.channel, self.plan.round
        values = select(self._tensors, names)
        if channel.sends_changes:
            return self._mirror.payload(values, known, federation.wire, channel.down, compress=channel.compresses)
        spec, draws = federation.forms.spec_of(form), derive(federation.seed, "codec", "down", round)
        with _told(round):
            narrow = federation.forms.narrowed(values, form)
            return encode(narrow, spec, channel.down, draws, compress=channel.compresses)


@contextmanager
def _told(round: int) -> Iterator[None]:
    """Context manager that turns a `PayloadError` of the server's own tensors into a `RoundError`."""
    try:
        yield
    except PayloadError as error:
        raise RoundError(f"round {round}: {error.message}", hint=error.hint or _DIVERGED_HINT) from error


def _arrived(first: Sequence[Transfer], second: Sequence[Transfer], unreached: Collection[int]) -> list[Transfer]:
    """The downloads that reached their clients; of a client that was asked twice, the last may not have."""
    asked_twice = {download.client_id for download in second}
    arrived = [download for download in first if download.client_id not in set(unreached) - asked_twice]
    arrived += [download for download in second if download.client_id not in unreached]
    return sorted(arrived, key=lambda download: download.client_id)


def _counts(federation: Federation, plan: RoundPlan, intake: Intake) -> bool:
    """Whether the round has enough usable replies to count.

    A round that lacks replies because clients were lost does not count, and the run goes on. So it does in a deployment
    if another client's reply was usable, or if all that were not are from one site, which may be at fault.

    Raises:
        RoundError: the round lacks replies because they were unusable.
    """
    accepted, rejections = intake.accepted, intake.rejections
    # With client-level privacy every round counts, but a run in which no reply is usable ends as any other.
    is_private, min_replies = federation.central is not None, max(1, federation.min_replies)
    if not plan.cohort:
        return is_private
    if len(accepted) >= min_replies:
        return True
    lost = {rejection.client_id for rejection in rejections if rejection.cause in LOST}
    lost = lost.intersection(plan.cohort).difference(reply.client_id for reply in accepted)
    if len(accepted) + len(lost) >= min_replies:
        return is_private
    sites = {federation.site_of.get(rejection.client_id) for rejection in rejections if rejection.cause not in LOST}
    if federation.site_of and (accepted or len(sites) == 1):
        return is_private
    raise too_few(federation, plan, len(accepted), rejections)


def _require_finite(round: int, tensors: Params) -> None:
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise RoundError(
            f"round {round}: {len(broken)} of {len(tensors)} tensors of the server are no longer finite, "
            f"first {broken[:3]}.",
            hint=_DIVERGED_HINT,
        )


def _evaluation(federation: Federation, params: Params, round: int, *, is_last: bool) -> Evaluation | None:
    """The measures of `params`, or None if this round is not evaluated.

    Raises:
        RoundError: a measure is not finite.
    """
    evaluate, thorough = federation.evaluate, federation.thorough
    is_due = is_last or round % federation.evaluate_every == 0
    if thorough is not None and thorough.is_due(round, is_last=is_last):
        evaluate, is_due = thorough.evaluate, True
    if evaluate is None or not is_due:
        return None
    evaluation = evaluate(params)
    if evaluation is not None and (name := evaluation.not_finite):
        value = evaluation.measures[name]
        raise RoundError(f"round {round}: the evaluation's `{name}` is {value}.", hint=_DIVERGED_HINT)
    return evaluation


def _spent(federation: Federation, bytes_sent: int) -> bool:
    """Whether the byte budget, if there is one, is used up."""
    return federation.byte_budget is not None and bytes_sent >= federation.byte_budget


def _total_bytes(transfers: Sequence[Transfer]) -> int:
    return sum(transfer.payload_bytes for transfer in transfers)


def _train_loss(accepted: Sequence[Accepted]) -> float | None:
    """Mean training loss of the accepted replies, weighted by examples; None without any, and with privacy."""
    losses = [reply.num_examples * reply.train_loss for reply in accepted if reply.train_loss is not None]
    return sum(losses) / sum(reply.num_examples for reply in accepted) if losses else None


def _synced_fraction(spec: ParamSpec, averaged: frozenset[str]) -> float:
    """Share of the trained, travelling scalars that were averaged: sum of dim_l over averaged layers l, over all l."""
    numels = {name: tensor.numel for name, tensor in spec.tensors.items() if tensor.trained and tensor.shared}
    return sum(numel for name, numel in numels.items() if name in averaged) / sum(numels.values())
