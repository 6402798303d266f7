"""Worker processes against a site that does anything: dies, fails, logs, sleeps."""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fedelta.errors import ConfigError, FedeltaError, PayloadError, RoundError
from fedelta.federation.measuring import Portion
from fedelta.federation.memory import Drift, Memory
from fedelta.federation.packs import Answer, Pack
from fedelta.federation.records import Fault, Reply
from fedelta.params import Params
from fedelta.runtimes.pool import Pool
from fedelta.runtimes.starting import copies
from fedelta.tasks.base import Sums

DOWNLOAD = b"what all clients get" * 1000
MEMORY = Memory({"own": torch.arange(3.0)}, {}, {"late": Drift(torch.ones(2, 2), torch.zeros(2, 2))}, {})


class Engine:
    """Has nothing to share; evaluates rows one by one, to sums that name them."""

    def __init__(self, look: Callable[[int], object] = int) -> None:
        self._look = look
        self.evaluator = self

    def share(self, test: object) -> None:
        pass

    def sums_of_batches(self, params: Params, data: object, rows: torch.Tensor) -> Iterator[list[Sums]]:
        for row in rows.tolist():
            self._look(row)
            yield [Sums({"row": (row / 3, float(params["scale"]))}), Sums({"pid": (os.getpid(), 1)})]


@dataclass
class Site:
    """Calls `act` with each client, and answers with what the client got."""

    act: Callable[[int], object] = int
    engine: Engine = Engine()  # noqa: RUF009
    test: str = "rows"
    threads: int = 1

    def train(self, pack: Pack, decoded: dict[bytes, Params]) -> Iterator[Answer]:
        for client_id, payload in pack.payloads.items():
            self.act(client_id)
            names = "/".join(pack.upload[client_id]).encode()
            yield Answer(Reply(client_id, 7, payload[:4] + names, {"train_loss": 0.1}), pack.memories[client_id])


def pack(*ids: int) -> Pack:
    return Pack(3, {i: (f"t{i}",) for i in ids}, dict.fromkeys(ids, DOWNLOAD), dict.fromkeys(ids, MEMORY))


def packs(*groups: tuple[int, ...]) -> list[list[Pack]]:
    """Bundles of one pack each."""
    return [[pack(*ids)] for ids in groups]


def pool_of(act: Callable[[int], object] = int, num_workers: int = 2) -> Pool:
    return Pool(copies(Site(act)), num_workers)


@pytest.fixture
def made() -> Iterator[Callable[..., Pool]]:
    pools: list[Pool] = []

    def make(act: Callable[[int], object] = int, num_workers: int = 2) -> Pool:
        pools.append(pool_of(act, num_workers))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def measuring(look: Callable[[int], object], num_workers: int = 2) -> Pool:
    return Pool(copies(Site(engine=Engine(look))), num_workers)


PORTIONS = [Portion(0, 0, 2), Portion(0, 2, 3), Portion(1, 0, 2), Portion(1, 2, 3)]
MODELS = [{"scale": torch.tensor(2.5)}, {"scale": torch.tensor(0.1)}]


def is_alive(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for_the_end_of(process_ids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(map(is_alive, process_ids)):
        assert time.monotonic() < deadline, "a process goes on"
        time.sleep(0.01)


def once(file: Path, act: Callable[[], object]) -> None:
    """Does `act` in the first process that comes here."""
    if not file.exists():
        file.touch()
        act()


def test_every_client_is_answered_once_and_keeps_what_it_kept(made):
    pool = made()
    answers = {answer.reply.client_id: answer for answer in pool.train(packs((0, 1), (2,), (5, 9), (7,), (8,)))}
    assert sorted(answers) == [0, 1, 2, 5, 7, 8, 9]
    assert answers[9].reply == Reply(9, 7, DOWNLOAD[:4] + b"t9", {"train_loss": 0.1})
    memory = answers[9].memory
    assert memory.local_only["own"].equal(MEMORY.local_only["own"])
    assert memory.adrift["late"].value.equal(torch.ones(2, 2))
    assert all(peak > 2**20 for peak in pool.peaks)


def test_the_packs_of_a_bundle_are_trained_apart_and_answered_together(made):
    bundles = [[pack(0, 1), pack(4)], [pack(2)]]
    answers = {answer.reply.client_id: answer for answer in made(num_workers=1).train(bundles)}
    assert list(answers) == [0, 1, 4, 2]
    assert {client_id: answer.reply.payload for client_id, answer in answers.items()} == {
        client_id: DOWNLOAD[:4] + f"t{client_id}".encode() for client_id in answers
    }
    assert answers[4].memory.local_only["own"].equal(MEMORY.local_only["own"])


def test_a_memory_with_nothing_in_it_crosses(made):
    ids = (0, 1)
    blank = Pack(3, dict.fromkeys(ids, ("t",)), dict.fromkeys(ids, DOWNLOAD), {0: Memory(), 1: MEMORY})
    first, second = made().train([[blank]])
    assert first.memory == Memory()
    assert second.memory.residual == {}
    assert second.memory.local_only["own"].equal(MEMORY.local_only["own"])


def test_a_message_about_many_clients_names_the_first(made):
    ids = tuple(range(20))
    with pytest.raises(RoundError, match=r"trained clients 0, 1, 2, 3, 4, 5, 6, 7 and 12 more; the last"):
        list(made(lambda client_id: os._exit(1)).train([[pack(*ids[:9]), pack(*ids[9:])]]))


def test_the_same_workers_stay_for_all_rounds(made):
    pool = made()
    list(pool.train(packs((0,), (1,), (2,))))
    before = pool.process_ids
    list(pool.train(packs((0,), (1,), (2,))))
    assert pool.process_ids == before
    assert len(set(before)) == 2


def test_the_sums_of_portions_come_in_their_order_with_every_bit(made):
    pool = made()
    batches = [sums for of_portion in pool.measure(PORTIONS, MODELS) for sums in of_portion]
    scales = [float(model["scale"]) for model in MODELS]  # 0.1 is not the float64 of that name
    expected = [(row / 3, scale) for scale in scales for row in range(3)]
    assert [first.totals["row"] for first, _ in batches] == expected
    assert {second.totals["pid"][0] for _, second in batches} <= set(pool.process_ids)


def test_workers_train_and_evaluate_in_turn(made):
    pool = made()
    for _ in range(2):
        assert len(list(pool.train(packs((0,), (1,), (2,))))) == 3
        assert len(pool.measure(PORTIONS, MODELS)) == 4
    assert len(pool.process_ids) == 2


def test_a_worker_that_dies_while_it_evaluates_is_replaced(tmp_path, caplog):
    def look(row: int) -> None:
        if row == 1:
            once(tmp_path / "killed", lambda: os.kill(os.getpid(), signal.SIGKILL))

    pool = measuring(look)
    try:
        assert [len(batches) for batches in pool.measure(PORTIONS, MODELS)] == [2, 1, 2, 1]
    finally:
        pool.close()
    [record] = caplog.records
    assert record.message.startswith("evaluation: the worker process that evaluated rows 0 to 1 of the test data was")


def test_an_error_in_an_evaluation_is_raised_and_ends_the_workers():
    def look(row: int) -> None:
        raise PayloadError("no such row.")

    pool = measuring(look)
    with pytest.raises(PayloadError, match="no such row"):
        pool.measure(PORTIONS, MODELS)
    assert pool.process_ids == []


def test_packs_are_handed_out_to_whoever_is_free(made, tmp_path):
    def act(client_id: int) -> None:
        (tmp_path / f"{client_id}").write_text(str(os.getpid()))
        time.sleep(0.3 if client_id == 0 else 0.02)

    list(made(act).train(packs((0,), (1,), (2,), (3,))))
    first, *others = [(tmp_path / f"{client_id}").read_text() for client_id in range(4)]
    assert len(set(others)) == 1
    assert first not in others


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_is_replaced_and_its_clients_are_asked_again(kind, made, tmp_path, caplog):
    def act(client_id: int) -> None:
        if client_id == 2:
            once(tmp_path / "killed", lambda: os.kill(os.getpid(), kind))

    answers = list(made(act).train(packs((0, 1), (2, 3), (4,), (5,))))
    assert sorted(answer.reply.client_id for answer in answers) == [0, 1, 2, 3, 4, 5]
    [record] = caplog.records
    assert record.message.startswith("round 3: the worker process that trained clients 2, 3 was ended by SIG")


def test_a_worker_that_is_killed_between_two_rounds_is_replaced(made):
    pool = made()
    list(pool.train(packs((0,), (1,))))
    os.kill(pool.process_ids[1], signal.SIGKILL)
    wait_for_the_end_of(pool.process_ids[1:])
    assert len(list(pool.train(packs((0,), (1,))))) == 2


def test_workers_that_die_again_and_again_end_the_run_with_a_hint(made):
    def act(client_id: int) -> None:
        if client_id == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    expected = (
        r"(?s)round 3: 3 worker processes have died while they trained client 2.*SIGKILL.*hint: .*runtime.workers"
    )
    pool = made(act)
    with pytest.raises(RoundError, match=expected):
        list(pool.train(packs((0, 1), (2,), (4,))))
    assert pool.process_ids == []


def test_a_plug_in_that_ends_its_process_is_a_death_too(made):
    with pytest.raises(RoundError, match=r"the last was ended by exit code 0"):
        list(made(lambda client_id: os._exit(0)).train(packs((0,), (1,))))


@pytest.mark.parametrize(
    "error",
    [
        PayloadError("no such payload.", hint="look elsewhere."),
        ConfigError(["`a` is 1, expected 2"], origin="x.toml", hint="set it."),
        RuntimeError("shapes do not fit"),
        KeyError("name"),
    ],
)
def test_an_error_in_a_worker_is_the_one_that_one_process_would_raise(error: Exception, made):
    def act(client_id: int) -> None:
        raise error

    pool = made(act)
    with pytest.raises(type(error)) as raised:
        list(pool.train(packs((0,), (1,))))
    assert type(raised.value) is type(error)
    if isinstance(error, FedeltaError):
        assert str(raised.value) == str(error)
    else:
        assert str(error) in str(raised.value)
        assert any("test_pool.py" in note for note in raised.value.__notes__)
    assert pool.process_ids == []


class StrangeError(ValueError):
    """Cannot be made from a text."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


def test_an_error_of_another_library_becomes_the_built_in_one_that_it_is(made):
    def act(client_id: int) -> None:
        raise StrangeError(4, reason="odd")

    with pytest.raises(ValueError, match="StrangeError: 4: odd"):
        list(made(act).train(packs((0,), (1,))))


def test_what_workers_log_and_warn_of_is_shown_once(made, caplog):
    def act(client_id: int) -> None:
        logging.getLogger("fedelta").warning("client %d is odd", client_id)
        logging.getLogger("a.library").error("an old file")
        warnings.warn("strange numbers", RuntimeWarning, stacklevel=1)

    with pytest.warns(RuntimeWarning, match="strange numbers") as warned:
        list(made(act).train(packs((0,), (1,))))
    assert len(warned) == 1
    assert sorted(record.getMessage() for record in caplog.records) == [
        "an old file", "client 0 is odd", "client 1 is odd",
    ]  # fmt: skip
    assert {record.levelno for record in caplog.records if record.name == "a.library"} == {logging.ERROR}


def test_nobody_goes_on_when_the_round_is_given_up(made):
    pool = made(lambda client_id: time.sleep(0.05))
    answers = pool.train(packs((0,), (1,), (2,), (3,)))
    next(answers)
    process_ids = pool.process_ids
    answers.close()
    wait_for_the_end_of(process_ids)


def test_a_fault_crosses_as_it_is(made):
    class Faulty(Site):
        def train(self, pack: Pack, decoded: dict[bytes, Params]) -> Iterator[Answer]:
            yield Answer(Reply(4, 0, b"", {"train_loss": float("nan")}, fault=Fault("broke", "refused", reached=True)))

    pool = Pool(copies(Faulty()), 1)
    [answer] = pool.train(packs((4,)))
    pool.close()
    assert answer.reply.fault == Fault("broke", "refused", reached=True)
    assert answer.memory is None


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_runs_them(kind, tmp_path):
    ids, line = tmp_path / "ids", "{}\n"

    def act(client_id: int) -> None:
        with ids.open("a") as file:
            file.write(line.format(os.getpid()))
        time.sleep(60)

    parent = os.fork()
    if parent == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        list(pool_of(act).train(packs((0,), (1,))))
        os._exit(1)
    deadline = time.monotonic() + 10
    while not ids.exists() or len(ids.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(parent, kind)
    os.waitpid(parent, 0)
    wait_for_the_end_of([int(process_id) for process_id in ids.read_text().split()])


def test_ctrl_c_leaves_it_to_the_run_what_ends(made):
    answers = (pool := made(lambda client_id: time.sleep(0.1))).train(packs((0,), (1,), (2,), (3,)))
    next(answers)
    before = pool.process_ids
    for process_id in before:
        os.kill(process_id, signal.SIGINT)
    assert len(list(answers)) == 3
    assert pool.process_ids == before


def test_a_worker_may_compute_with_several_threads_although_this_process_did(made):
    # A plain copy would wait for ever for the threads of OpenMP, which were not copied.
    torch.set_num_threads(2)
    numbers = torch.rand(512, 512)
    numbers @ numbers
    try:
        pool = made(lambda client_id: (torch.set_num_threads(2), numbers @ numbers))
        assert len(list(pool.train(packs((0,), (1,))))) == 2
    finally:
        torch.set_num_threads(1)
