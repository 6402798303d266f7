"""What a site answers to the messages of a server. Nothing here knows how messages travel.

    describe -> described    which clients and classes the site has
    prepare  -> prepared     the site's part in a run, and whether model, task and tensors are those of the server
    train    -> trained      uploads of the site's clients
    evaluate -> evaluated    sums of the task's measures over the site's test rows
    finish   -> finished     the run has ended

Any of them may be answered with `refused`. A service keeps data and model loaded from message to message. It may end at
any moment and start anew: what it needs for the next message is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fedelta import __version__
from fedelta.assembly.deployed import Deployed, Share, deploy, offer
from fedelta.assembly.settling import with_task
from fedelta.assembly.site import read_raw
from fedelta.config import Config
from fedelta.data.skipping import as_csv
from fedelta.data.sources import RawData
from fedelta.deployment.site.merging import merged
from fedelta.deployment.site.protection import (
    Protection,
    account_of,
    refuse_other_sizes,
    refuse_statistics,
    site_privacy,
)
from fedelta.deployment.site.refusals import refusal
from fedelta.deployment.site.requests import Describe, Evaluate, Finish, Prepare, Train, read
from fedelta.deployment.site.rounds import Blobs, evaluated, trained
from fedelta.deployment.site.run_folders import RunFolders, RunRecord
from fedelta.deployment.site.settings import SiteSettings
from fedelta.errors import DataError, FedeltaError, InputError, ModelError, PayloadError, RoundError, listed
from fedelta.runtimes.remote.messages import FAILED, PROTOCOL, REFUSED, UNPREPARED, Message
from fedelta.runtimes.remote.store import MemoryStore
from fedelta.tasks.choice import task_of
from fedelta.tasks.known_classes import OTHERS, KnownClasses
from fedelta.tasks.targets import strata_of

logger = logging.getLogger("fedelta")
T = TypeVar("T")
RequestT = TypeVar("RequestT", Train, Evaluate)


@dataclass(frozen=True)
class _InRun:
    """What answers a message in a run.

    Args:
        deployed: model, data and engine.
        prepare: the site's part.
        store: what its clients remember.
    """

    deployed: Deployed
    prepare: Prepare
    store: MemoryStore


class Service:
    """Answers messages for a site.

    Args:
        settings: of the site.
    """

    def __init__(self, settings: SiteSettings) -> None:
        self.settings = settings
        self._share = Share(settings.name, settings.clients)
        self._runs = RunFolders(Path(settings.state) / "runs")
        # The last value of each kind and the key that it was made for: data, models and stores may be large.
        self._kept: dict[str, tuple[str, Any]] = {}
        self._last: tuple[str, Message] | None = None

    def answer(self, message: Message) -> Message:
        """The answer to a message; `refused` if it cannot be followed. Raises nothing but what ends the process.

        The same message has the same answer, and the last training that succeeded is not done again.
        """
        digest = _digest(message) if message.kind == "train" else ""
        if self._last is not None and self._last[0] == digest:
            return self._last[1]
        try:
            answer = self._answer(message)
        except FedeltaError as error:
            logger.warning("refused a message %r: %s", message.kind, error)
            return refusal(error, self._told_before(), hides_numbers=self.settings.privacy.unit is not None)
        except OSError as error:
            logger.exception("a message %r failed", message.kind)
            return _failed(message, f"of a file: {error.strerror or type(error).__name__}")
        except Exception as error:
            logger.exception("a message %r failed", message.kind)
            return _failed(message, f"of an error of the kind {type(error).__name__}")
        if answer.kind == "trained" and all(entry["fault"] is None for entry in answer.manifest["clients"]):
            self._last = (digest, answer)
        return answer

    def _answer(self, message: Message) -> Message:
        manifest, blobs = message.manifest, message.blobs
        match message.kind:
            case "describe":
                return self._describe(read(Describe, manifest))
            case "prepare":
                return self._prepare(read(Prepare, manifest))
            case "train":
                return self._in_run(read(Train, manifest), partial(self._train, blobs=blobs))
            case "evaluate":
                return self._in_run(read(Evaluate, manifest), partial(self._evaluate, blobs=blobs))
            case "finish":
                return self._finish(read(Finish, manifest))
        raise PayloadError(f"a message of the kind {message.kind!r} is not known.")

    def _describe(self, request: Describe) -> Message:
        if (request.protocol, request.version) != (PROTOCOL, __version__):
            raise InputError(
                f"the server has fedelta {request.version} and messages of form {request.protocol}, this site has "
                f"fedelta {__version__} and form {PROTOCOL}.",
                hint="install the same version at the server and at all sites.",
            )
        self._runs.prune(self.settings.worker.keep_days)
        config = merged(request.config, self.settings)
        known = KnownClasses((), may_lack=True) if self.settings.allow_missing_classes else None
        raw = self._raw(config, known)
        offered = offer(config, raw, self._share)
        sizes = {str(key): number for key, number in offered.num_examples.items()}
        self._runs.write(request.run, RunRecord(request.config, sizes=sizes))
        if raw.skipped:
            self._runs.write_skipped(request.run, as_csv(raw.skipped))
        manifest = {
            "protocol": PROTOCOL,
            "version": __version__,
            "class_names": [name for name in raw.class_names if name != OTHERS],
            "clients": [{"key": key, "num_examples": number} for key, number in offered.num_examples.items()],
            "is_natural": not self.settings.is_partition,
            "num_test_examples": offered.num_test_examples,
            "statistics": offered.statistics.totals,
            "num_skipped": len(raw.skipped),
        }
        return Message("described", manifest)

    def _prepare(self, request: Prepare) -> Message:
        record = self._runs.read(request.run)
        if record is None:
            return _unprepared(request.run)
        deployed = self._deployed(record, request)
        site_privacy(deployed.config, request, self.settings)  # raises where it cannot be had
        keeps = bool(deployed.site.engine.spec.kept)
        self._runs.write(request.run, replace(record, prepare=request.model_dump(mode="json"), keeps=keeps))
        manifest = {
            "fingerprint": deployed.site.wire.fingerprint.hex(),
            "identity": dict(deployed.model.identity),
            "task": deployed.config.task.name,
            "device": deployed.config.runtime.torch_device(),
        }
        return Message("prepared", manifest)

    def _in_run(self, request: RequestT, act: Callable[[_InRun, RequestT], Message]) -> Message:
        """The answer of `act` with the objects of the run, which are made again if this process has not got them."""
        record = self._runs.read(request.run)
        if record is None or record.prepare is None:
            return _unprepared(request.run)
        prepare = read(Prepare, record.prepare)
        deployed = self._deployed(record, prepare)
        return act(_InRun(deployed, prepare, self._store(request.run)), request)

    def _train(self, place: _InRun, request: Train, blobs: Blobs) -> Message:
        config, protection = place.deployed.config, None
        if (privacy := site_privacy(config, place.prepare, self.settings)) is not None:
            protection = Protection(privacy, account_of(self.settings), place.prepare, config.to_toml())
        try:
            return trained(place.deployed, protection, place.store, request, blobs)
        except (DataError, ModelError) as error:
            if protection is None:
                raise
            logger.warning("training failed: %s", error)
            # What it says may be about single rows, and no noise covers it.
            raise RoundError("training failed at this site.", hint="the site's log says why.") from error

    def _evaluate(self, place: _InRun, request: Evaluate, blobs: Blobs) -> Message:
        privacy = self.settings.privacy
        if privacy.unit is not None and not privacy.allow_measures:
            raise InputError(
                "this site measures no models on its data: no noise covers such measures.",
                hint="`allow_measures = true` in section `[privacy]` of its settings allows it.",
            )
        return evaluated(place.deployed, place.store, request, blobs)

    def _finish(self, request: Finish) -> Message:
        """Forgets the run, unless its clients keep tensors of their own, which belong to the finished model."""
        record = self._runs.read(request.run)
        if record is None or not record.keeps:
            self._kept.pop("store", None)
            self._runs.delete(request.run)
        return Message("finished")

    def _deployed(self, record: RunRecord, request: Prepare) -> Deployed:
        """The objects of the run, which serve every run with the same recipe and the same part in it."""
        config = _with_settled(merged(record.config, self.settings), request.task)
        part = request.model_dump(mode="json", exclude={"run"})

        def make() -> Deployed:
            self._kept.pop("deployed", None)  # two models may not fit into memory
            depths = None if request.depths is None else dict(request.depths)
            deployed = deploy(config, self._raw_for(config, request), self._share, request.numbers, depths)
            refuse_statistics(config, deployed.site.engine.spec)
            return deployed

        deployed = self._keep("deployed", json.dumps([config.to_toml(), part]), make)
        if config.privacy.unit == "example":
            refuse_other_sizes(record.sizes, deployed.site, request)
        return deployed

    def _raw_for(self, config: Config, request: Prepare) -> RawData:
        """The data with the classes of the federation."""
        names = tuple(request.class_names)
        if not config.task.has_classes:
            raw = self._raw(config, None)
            if raw.class_names != names:
                words = config.task.output[1]
                raise InputError(
                    f"the server has the {words} {listed(names)}, this site has {listed(raw.class_names)}."
                )
            return raw
        _, raw = self._kept.get("raw", ("", None))
        if raw is not None and raw.class_names == names and len(strata_of(raw.train.targets).unique()) == len(names):
            return self._raw(config, None)
        return self._raw(config, KnownClasses(names, may_lack=self.settings.allow_missing_classes))

    def _raw(self, config: Config, known: KnownClasses | None) -> RawData:
        key = repr((config.data, config.task, config.seed, config.model.num_classes, config.augmentation, known))
        return self._keep("raw", key, lambda: read_raw(config, known))

    def _store(self, run: str) -> MemoryStore:
        return self._keep("store", run, lambda: self._runs.memories(run))

    def _keep(self, kind: str, key: str, make: Callable[[], T]) -> T:
        """The value of this kind that was made for `key` before, or a new one in its place."""
        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept[kind] = (key, make())
        value: T = self._kept[kind][1]
        return value

    def _told_before(self) -> set[str]:
        """Texts of the site's settings that are no data: names of columns."""
        columns = self.settings.data.model_dump(mode="json")
        names = {value for key, value in columns.items() if key.endswith("_column") and value is not None}
        return names | set(columns["label_columns"] or ())


def _digest(message: Message) -> str:
    digest = hashlib.sha256(json.dumps(message.manifest).encode())
    for blob in message.blobs:
        digest.update(hashlib.sha256(blob).digest())
    return digest.hexdigest()


def _with_settled(config: Config, section: Mapping[str, Any]) -> Config:
    """The configuration with the task as the server has settled it; Any: JSON values."""
    if not section:
        return config
    try:
        task = task_of({"task": section})
    except ValueError as error:
        raise PayloadError("a message `prepare` cannot be used: `task` is no valid section.") from error
    if task.name != config.task.name:
        raise InputError(f"the server's task is {task.name!r}, this site's is {config.task.name!r}.")
    return with_task(config, task)


def _failed(message: Message, why: str) -> Message:
    reason = f"the site failed at a message {message.kind!r} because {why}"
    return Message(REFUSED, {"reason": reason, "hint": "the site's log says more.", "cause": FAILED})


def _unprepared(run: str) -> Message:
    manifest: Mapping[str, str] = {
        "reason": f"the site does not know the run {run[:40]!r}: its memory of it is lost, or it has not been prepared",
        "hint": "the server asks again at the start of a run; start it again if it does not.",
        "cause": UNPREPARED,
    }
    return Message(REFUSED, manifest)
