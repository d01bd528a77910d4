"""The engine: compare, apply, and compare again.

A resource says what should be (``desired``), what is (``read``) and how to close the gap
(``apply``). Bootstrap is ``apply=True``, a drift check is ``apply=False``, a rerun is ``apply=True``
with nothing to do.

States are flat: attribute → value. Only attributes that ``desired`` names are ours, so a provider's
defaults never show as drift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from threading import RLock
from typing import Any, Generic, Protocol, TypeVar

from flows.errors import DidNotConverge

Value = str | int | float | bool | tuple[str, ...] | None
State = Mapping[str, Value]
SIDE_BY_SIDE = 4
"""Reads at once."""


@dataclass(frozen=True)
class Change:
    """One attribute that is not what it should be."""

    attribute: str
    desired: Value
    actual: Value
    missing: bool = False
    """The whole resource does not exist; ``actual`` says nothing then."""

    def __str__(self) -> str:
        if self.missing:
            return f"{self.attribute}: {shown(self.desired)}"
        return f"{self.attribute}: {shown(self.actual)} → {shown(self.desired)}"


@dataclass(frozen=True)
class Outcome:
    """What came of one resource: ``changes`` were found, of which ``applied`` were made."""

    resource: str
    changes: tuple[Change, ...] = ()
    applied: tuple[Change, ...] = ()

    def keeps(self, attribute: str) -> bool:
        """Whether that attribute is, or was made, what it should be."""
        left = (change for change in self.changes if change not in self.applied)
        return not any(change.missing or change.attribute == attribute for change in left)

    @property
    def word(self) -> str:
        """``unchanged``, ``changed``, ``missing`` or ``drifted``."""
        if not self.changes:
            return "unchanged"
        if self.applied:
            return "changed"
        return "missing" if self.changes[0].missing else "drifted"


class Described(Protocol):
    """A thing that says what it should be; how it is read and changed is another's to know."""

    @property
    def name(self) -> str: ...
    def desired(self) -> State: ...


class Resource(Described, Protocol):
    """One managed thing. ``None`` from ``read`` means it does not exist."""

    def read(self) -> State | None: ...
    def apply(self, changes: tuple[Change, ...]) -> None: ...


def diff(desired: State, actual: State | None) -> tuple[Change, ...]:
    """Attributes of ``desired`` that ``actual`` does not have, in the order of ``desired``."""
    if actual is None:
        wanted = desired or {"exists": True}
        return tuple(Change(name, value, None, missing=True) for name, value in wanted.items())
    return tuple(
        Change(name, value, actual.get(name))
        for name, value in desired.items()
        if not _same(actual.get(name), value)
    )


def reconcile(
    resource: Resource, *, apply: bool, leave: Callable[[Change], bool] = lambda change: False
) -> Outcome:
    """Bring a resource to what it should be, or only say how it differs.

    ``leave`` says which changes are found, but not made. Raises DidNotConverge when a second read,
    after ``apply``, still differs in what was to be changed.
    """
    desired = resource.desired()
    changes = diff(desired, resource.read())
    wanted = tuple(change for change in changes if apply and not leave(change))
    if not wanted:
        return Outcome(resource.name, changes)
    resource.apply(wanted)
    made = {change.attribute for change in wanted}
    remaining = [c for c in diff(desired, resource.read()) if c.attribute in made or c.missing]
    if remaining:
        raise DidNotConverge(resource.name, remaining)
    return Outcome(resource.name, changes, wanted)


def _same(actual: Value, desired: Value) -> bool:
    """Equal and of one kind: ``True`` is not 1, and ``"80"`` is not 80."""
    return actual == desired and isinstance(actual, bool) == isinstance(desired, bool)


def shown(value: Value) -> str:
    """A value, for people."""
    if value in (None, "", ()):
        return "none"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


K = TypeVar("K")
T = TypeVar("T")
D = TypeVar("D", bound=Described)


class Batch(Generic[K]):
    """The states of many things, read at once when the first of them is asked for.

    ``read`` answers for each thing with its state, None when it does not exist, or the error that
    kept it from being read, which only the thing itself then raises. A change forgets what it may
    have touched, and all that ``upon`` knows, which stands on this; from then on the next thing is
    read with what follows it in its own group only, for a later group may well change again.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[K]],
        read: Callable[[Sequence[K]], Sequence[State | Exception | None]],
        upon: Batch[Any] | None = None,
    ) -> None:
        self._upon = upon
        self._things = [(number, thing) for number, group in enumerate(groups) for thing in group]
        self._read = read
        self._known: dict[int, State | Exception | None] = {}
        self._changed = False
        self._alone = RLock()

    def state(self, thing: K) -> State | None:
        """The state of one thing. Raises what kept it from being read; the next call tries again."""
        index = self._index(thing)
        with self._alone:
            if index not in self._known:
                self._fill(
                    i
                    for i, (group, _) in enumerate(self._things)
                    if i >= index and (group == self._things[index][0] or not self._changed)
                )
            answer = self._known[index]
            if isinstance(answer, Exception):
                del self._known[index]
                raise answer
            return answer

    def ahead(self) -> None:
        """Read all of it, for those who ask later. Raises what keeps anything from being read."""
        with self._alone:
            self._fill(range(len(self._things)))

    def forget(self, thing: K | None = None) -> None:
        """Read again after a change: one thing, or all of them."""
        with self._alone:
            self._changed = True
            if thing is None:
                self._known.clear()
            else:
                self._known.pop(self._index(thing), None)
        below = self._upon
        while below:
            with below._alone:
                below._known.clear()
            below = below._upon

    def know(self, thing: K, answer: State | Exception | None) -> None:
        """Somebody has just read it."""
        with self._alone:
            self._known[self._index(thing)] = answer

    def _fill(self, indices: Iterable[int]) -> None:
        wanted = [index for index in indices if index not in self._known]
        if not wanted:
            return
        answers = self._read([self._things[index][1] for index in wanted])
        self._known |= dict(zip(wanted, answers, strict=True))

    def _index(self, thing: K) -> int:
        return next(i for i, (_, other) in enumerate(self._things) if other == thing)


@dataclass(frozen=True)
class Batched(Generic[D]):
    """The part of a Resource that is the same for all things that are read in a batch."""

    kind: D
    batch: Batch[D]

    @property
    def name(self) -> str:
        return self.kind.name

    def desired(self) -> State:
        return self.kind.desired()

    def read(self) -> State | None:
        return self.batch.state(self.kind)


class Remembered(Batched[Resource]):
    """A resource that is read once, until something changes."""

    def apply(self, changes: tuple[Change, ...]) -> None:
        try:
            self.kind.apply(changes)
        finally:
            self.batch.forget()


def remembered(resources: Sequence[Resource]) -> list[Remembered]:
    """The resources; what one changes may matter to all the others."""

    def read(wanted: Sequence[Resource]) -> list[State | Exception | None]:
        return side_by_side(_read, wanted)

    batch = Batch([[each] for each in resources], read)
    return [Remembered(each, batch) for each in resources]


def side_by_side(call: Callable[[K], T], things: Sequence[K]) -> list[T]:
    """What the call gives for each thing, of some at once, each in the context we are in. Whoever
    interrupts it does not wait for those under way."""
    pool = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="read")
    try:
        futures = [pool.submit(copy_context().run, call, thing) for thing in things]
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read(resource: Resource) -> State | Exception | None:
    try:
        return resource.read()
    except Exception as error:  # noqa: BLE001 - whatever it is, only this one could not be read
        return error
