"""Every call of the cloud stage fails in every way: a run converges, or ends in time with an error of the
right class that says what to do; after that one rerun converges, and nothing is there twice or left
over."""

from __future__ import annotations

import functools

import pytest

from blocks.compute import ApiError, DeadlinePassed, Remedy
from flows.errors import BootstrapError, Transient
from tests.flows.faulty_cloud import FAULTS, OF_OPERATIONS, SLOW, Called, faulty
from tests.flows.test_compute_resources import spec

PASSES = ("reset before", "reset after", "500", "503", "429", "rate limit", "not ready")
LASTING = ("reset before", "503", "delayed")
"""One of each way that the client takes: no answer, an answer that may pass, a late one."""
STAYS = {
    "403": (Remedy.FATAL, "role.yaml has all that are needed"),
    "409": (Remedy.ADOPT, "what is there is compared"),
    "412": (Remedy.REFETCH, "when nobody else changes it"),
    "over quota": (Remedy.FATAL, "Ask for more quota"),
    "stock-out": (Remedy.OTHER_ZONE, "list further zones"),
}
LONGEST = 300 + SLOW + 120
"""Seconds: the deadline of a change, and the last request that began before it."""


CHANGED = spec(machine={"type": "e2-small", "disk_gb": 20, "labels": {"team": "ops"}})
"""Of a server that is there: its disk grows, and its machine is stopped for another type."""


@functools.cache
def clean(changes: bool = False) -> tuple[tuple[Called, ...], tuple[str, ...]]:
    """The calls of a run that nothing disturbs, from nothing or to a changed spec, and what there is
    after it."""
    with faulty() as lab:
        if changes:
            lab.run()
            lab.http.forget()
        lab.run(CHANGED if changes else None)
        return tuple(lab.http.calls), tuple(lab.inventory())


def calls(fault: str, *, changes: bool = False) -> list[Called]:
    """Those that a fault may hit: an operation is begun by a POST to Compute Engine."""
    every = list(clean(changes)[0])
    if changes:  # what is read first is the same as for what is new
        every = every[next(i for i, (call, _) in enumerate(every) if "POST" in call) :]
    begins = [c for c in every if c[0].startswith("POST /compute") and "/wait" not in c[0]]
    return begins if fault in OF_OPERATIONS else every


def broken(fault: str, at: Called, *, lasts: bool, changes: bool = False) -> BootstrapError | None:
    """What a run under a fault ends with; the rerun after it leaves just what a clean run does."""
    ended, wanted = None, CHANGED if changes else None
    with faulty() as lab:
        if changes:
            lab.run()
            lab.http.forget()
        lab.http.fault, lab.http.at, lab.http.lasts = fault, at, lasts
        try:
            lab.run(wanted)
        except BootstrapError as error:
            ended = error
        longest = LONGEST * (1 + changes)  # what was stopped is started again, in its own time
        assert lab.http.now <= longest, f"{fault} of {at} took {lab.http.now:.0f} s"
        lab.http.lift()
        lab.run(wanted)
        assert tuple(lab.inventory()) == clean(changes)[1], f"{fault} of {at}"
        seen = len(lab.http.writes)
        assert not any(outcome.changes for outcome in lab.run(wanted)), f"{fault} of {at}"
        assert len(lab.http.writes) == seen
    return ended


@pytest.mark.parametrize("fault", [*PASSES, "delayed", "operation error"])
def test_what_passes_is_waited_for(fault: str) -> None:
    for at in calls(fault):
        assert broken(fault, at, lasts=False) is None, at


@pytest.mark.parametrize("fault", LASTING)
def test_what_does_not_pass_ends_at_its_deadline(fault: str) -> None:
    for at in calls(fault):
        error = broken(fault, at, lasts=True)
        if fault == "delayed":
            assert error is None, at
            continue
        assert isinstance(error, ApiError | DeadlinePassed), at
        assert error.repair.startswith(("Run again in some minutes", "Check the network")), at


@pytest.mark.parametrize("fault", STAYS)
def test_what_stays_is_told_by_its_class_and_its_repair(fault: str) -> None:
    remedy, repair = STAYS[fault]
    for at in calls(fault):
        error = broken(fault, at, lasts=True)
        if fault == "409" and error is None:
            continue  # adopted
        if fault == "409" and isinstance(error, Transient | DeadlinePassed):
            assert "Run again" in error.repair, at  # to be adopted, but not there
            continue
        assert isinstance(error, ApiError), (at, error)
        assert (error.remedy, repair in error.repair) == (remedy, True), (at, error)


def test_an_operation_that_never_ends_is_given_up_and_its_work_found_later() -> None:
    for at in calls("never ends"):
        error = broken("never ends", at, lasts=True)
        assert isinstance(error, DeadlinePassed), at
        assert "is not done after 300 s. Run again" in str(error), at


@pytest.mark.parametrize("fault", FAULTS)
def test_a_change_of_what_is_there_is_made_up_for_by_one_rerun(fault: str) -> None:
    for at in calls(fault, changes=True):
        error = broken(fault, at, lasts=False, changes=True)
        if fault in (*PASSES, "delayed", "operation error"):
            assert error is None, (at, error)
        assert error is None or error.repair, (at, error)


def test_every_fault_has_its_test() -> None:
    assert {*PASSES, *LASTING, *STAYS, "operation error", "never ends"} == FAULTS.keys()
