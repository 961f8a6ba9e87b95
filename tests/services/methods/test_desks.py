"""Who works at the desks: few at a time, no owner at all of them, and nobody who left one holds it."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Event, current_thread

import pytest

from services.contracts.attribution import AttributionResult
from services.contracts.direct_logit_attribution import DirectLogitOutcome
from services.contracts.job import JobResult
from services.engine.ticket import JobCancelled, JobTicket
from services.methods.desks import Desks
from services.methods.registry import run_method
from tests.processes import eventually
from tests.services.methods.conftest import SPEC, Laboratory

PATIENCE_S = 30.0


class Office:
    """Desks, and threads that wait for them."""

    def __init__(self, desks: int) -> None:
        self.desks = Desks(desks)
        self._threads = ThreadPoolExecutor(32)
        self._leaving: dict[JobTicket, Future[None]] = {}
        self._done: dict[JobTicket, Future[None]] = {}

    def come(self, ticket: JobTicket) -> JobTicket:
        self._leaving[ticket] = Future()
        self._done[ticket] = self._threads.submit(self._work, ticket)
        assert eventually(lambda: ticket in self.seated or ticket in self.waiting, PATIENCE_S)
        return ticket

    def go(self, ticket: JobTicket) -> set[JobTicket]:
        """Who has a desk thereby."""
        before = self.seated
        self._leaving[ticket].set_result(None)
        self.result_of(ticket)
        return self.seated - before

    def result_of(self, ticket: JobTicket) -> None:
        self._done[ticket].result(PATIENCE_S)

    @property
    def seated(self) -> set[JobTicket]:
        return set(self.desks._seated)

    @property
    def waiting(self) -> list[JobTicket]:
        return [entry.ticket for entry in list(self.desks._line)]

    def owners(self) -> Counter[str]:
        return Counter(ticket.owner for ticket in self.seated)

    def close(self) -> None:
        for leaving in self._leaving.values():
            if not leaving.done():
                leaving.set_result(None)
        self._threads.shutdown()

    def _work(self, ticket: JobTicket) -> None:
        with self.desks.seat(ticket):
            self._leaving[ticket].result(PATIENCE_S)


@pytest.fixture
def office() -> Iterator[Office]:
    office = Office(desks=4)
    yield office
    office.close()


def job(owner: str, *, background: bool = False) -> JobTicket:
    return JobTicket("job", owner, background=background)


def test_an_owner_leaves_as_many_desks_free_as_it_holds(office: Office) -> None:
    for _ in range(8):
        office.come(job("ada"))
    assert office.owners() == {"ada": 2}
    office.come(job("bob"))
    office.come(job("bob"))
    office.come(job("carl"))
    assert office.owners() == {"ada": 2, "bob": 1, "carl": 1}
    assert Counter(ticket.owner for ticket in office.waiting) == {"ada": 6, "bob": 1}


def test_a_job_in_the_foreground_comes_first_then_an_owner_who_holds_less_then_who_came_first(office: Office) -> None:
    adas = [office.come(job("ada", background=True)) for _ in range(2)]
    bob, carl = office.come(job("bob")), office.come(job("carl"))
    more_of_ada = [office.come(job("ada", background=True)) for _ in range(2)]
    dora = office.come(job("dora", background=True))
    more_of_bob = office.come(job("bob"))
    assert office.go(bob) == {more_of_bob}
    assert office.go(carl) == {dora}
    assert office.go(more_of_bob) == set(), "the last free desk is for an owner who holds none"
    assert office.go(adas[0]) == {more_of_ada[0]}
    assert office.waiting == more_of_ada[1:]


def test_a_job_that_waits_for_something_else_holds_no_desk(office: Office) -> None:
    ada = job("ada")
    office.come(job("ada"))
    with office.desks.seat(ada):
        other = office.come(job("ada"))
        assert office.waiting == [other]
        with office.desks.away(ada):
            assert other in office.seated
            office.go(other)
        assert ada in office.seated


def test_a_job_without_a_desk_needs_none_after_it_waited(office: Office) -> None:
    for _ in range(2):
        office.come(job("ada"))
    with office.desks.away(job("ada")):
        pass
    assert office.owners() == {"ada": 2}


def test_a_job_that_is_stopped_in_line_goes_at_once_and_takes_no_desk_with_it(office: Office) -> None:
    first, second = office.come(job("ada")), office.come(job("ada"))
    stopped, patient = office.come(job("ada")), office.come(job("ada"))
    stopped.stop()
    with pytest.raises(JobCancelled):
        office.result_of(stopped)
    assert office.go(first) == {patient}
    office.go(second)
    office.go(patient)
    assert not office.seated
    assert not office.waiting


BODY = {
    "kind": "attribution",
    "model": "tiny-llama",
    "method": {"type": "direct_logit_attribution"},
    "examples": [{"prompt": "When John and Mary went to", "answer": " Mary", "foil": " John"}],
}


def sums(result: JobResult) -> tuple[float, float]:
    assert isinstance(result, AttributionResult)
    assert isinstance(result.attribution, DirectLogitOutcome)
    (example,) = result.attribution.examples
    return example.metric, example.sum_of_terms


def test_jobs_that_wait_for_the_engine_have_left_their_desks_to_others(laboratory: Laboratory) -> None:
    """One owner's eight, who hold two desks at most, all come to wait for an engine that another job keeps busy."""
    spec = SPEC.validate_json(json.dumps(BODY))
    desks, go_on, working = Desks(), Event(), Event()

    def keep_the_engine(_done: int, _planned: int) -> None:
        if current_thread().name == "engine":
            working.set()
            go_on.wait(PATIENCE_S)

    busy = JobTicket("busy", "ada", on_progress=keep_the_engine)
    tickets = [busy, *(JobTicket(f"job {number}", "bob") for number in range(8))]
    contexts = [replace(laboratory.context(spec, None), desks=desks, ticket=ticket) for ticket in tickets]

    def compute(number: int) -> JobResult:
        return run_method(spec, contexts[number])

    with ThreadPoolExecutor(len(tickets)) as threads:
        runs = [threads.submit(compute, 0)]
        assert working.wait(PATIENCE_S)
        runs += [threads.submit(compute, number) for number in range(1, len(tickets))]
        all_wait = eventually(lambda: laboratory.engine.statistics().waiting_rows == 8, PATIENCE_S)
        left = not desks._seated
        go_on.set()
    assert all_wait
    assert left
    assert all(run.result() for run in runs)


def test_a_method_runs_at_a_desk(laboratory: Laboratory, office: Office) -> None:
    """One that finds none waits, and runs once there is one."""
    spec = SPEC.validate_json(json.dumps(BODY))
    taken = [office.come(job("ada")), office.come(job("ada"))]
    context = replace(laboratory.context(spec, None), desks=office.desks, ticket=job("ada"))
    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(run_method, spec, context)
        assert eventually(lambda: office.waiting == [context.ticket], PATIENCE_S)
        assert not run.done()
        office.go(taken[0])
        assert sums(run.result(PATIENCE_S))


def test_jobs_that_share_desks_give_the_numbers_that_one_gives_alone_and_leave_no_desk_taken(
    laboratory: Laboratory,
) -> None:
    """Some of them stopped before they begin."""
    spec = SPEC.validate_json(json.dumps(BODY))
    alone = run_method(spec, laboratory.context(spec, None))
    desks = Desks()
    contexts = [replace(laboratory.context(spec, None), desks=desks) for _ in range(24)]
    for context in contexts[::6]:
        context.ticket.stop()
    with ThreadPoolExecutor(len(contexts)) as threads:
        runs = [threads.submit(run_method, spec, context) for context in contexts]
    ended = Counter(type(run.exception()) for run in runs)
    assert ended == {JobCancelled: 4, type(None): 20}
    for run in runs:
        if run.exception() is None:
            assert sums(run.result()) == pytest.approx(sums(alone), rel=1e-4)
    assert not desks._seated
    assert not desks._line
