"""What every kind of cloud resource has in common.

A kind describes one resource and holds nothing but the spec: what it should be, the request that
reads it, what an answer means, and the calls that close the gap. The client comes from outside, for
httplib2 wants one a thread. Identity is a name and a mark: a label ``prefect-bootstrap=<server>``,
or, where Compute Engine has no labels, the description ``prefect-bootstrap:<server>``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from blocks.compute import ApiError, Compute, Json, Remedy
from flows.errors import BootstrapError, Final, NeedsReplacement, NotOurs, Transient
from flows.reconcile import Change, State, Value, diff
from flows.spec import OWNER_LABEL, ServerSpec

TRIES = 5
"""How often a change is made anew because somebody else's came between reading and writing."""


def short(url: str) -> str:
    """The last part of a link: ``europe-west4-a`` of a zone's."""
    return url.rpartition("/")[2]


def flat(part: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Attributes of a part: ``labels.team`` of a label."""
    return {f"{part}.{key}": value for key, value in values.items()}


def of_part(part: str, changes: Sequence[Change]) -> Json:
    """What is to be changed of a part: the inverse of ``flat``."""
    names = {change.attribute: change.desired for change in changes}
    return {n.removeprefix(f"{part}."): v for n, v in names.items() if n.startswith(f"{part}.")}


def placed(url: str, project: str) -> str:
    """The name at the end of a link, after its project when that is not ``project``."""
    home = url.partition("projects/")[2].partition("/")[0]
    return short(url) if home == project else f"{home}/{short(url)}"


def labelled(now: Json, wanted: Json) -> Json:
    """The body that sets the wanted labels and keeps the others."""
    labels = {**now.get("labels", {}), **wanted}
    return {"labels": labels, "labelFingerprint": now["labelFingerprint"]}


@dataclass(frozen=True)
class Kind(ABC):
    """One resource of the cloud; ``noun`` is what a person calls it."""

    spec: ServerSpec
    noun: ClassVar[str]
    fixed: ClassVar[Mapping[str, str]] = {}
    """Attributes that cannot be changed in place, and why."""

    @property
    def lent(self) -> bool:
        """Whether it is somebody else's, which is only looked at."""
        return False

    @property
    @abstractmethod
    def id(self) -> str:
        """What the API calls it."""

    @property
    def name(self) -> str:
        return f"{self.noun} {self.id}"

    @property
    def brings(self) -> Sequence[Kind]:
        """What comes and goes with it."""
        return ()

    @abstractmethod
    def desired(self) -> State: ...

    @abstractmethod
    def request(self, compute: Compute) -> Any:
        """The request that reads it."""

    @abstractmethod
    def parse(self, body: Json) -> State:
        """What the answer says. Raises NotOurs."""

    @abstractmethod
    def create(self, compute: Compute) -> None: ...

    @abstractmethod
    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """Make the changes to what exists. Raises NeedsReplacement."""

    def fetch(self, compute: Compute) -> Json | None:
        return compute.read(self.request(compute))

    def read(self, compute: Compute) -> State | None:
        """The state; None when it does not exist. Raises ApiError and NotOurs."""
        body = self.fetch(compute)
        return None if body is None else self.parse(body)

    def apply(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """Create it or change it; what another run created meanwhile is compared and changed. What
        is lent is refused."""
        if self.lent and (refused := self.refused(changes[0])):
            raise refused
        if changes[0].missing:
            try:
                self.create(compute)
                return
            except ApiError as error:
                if error.remedy is not Remedy.ADOPT:
                    raise
            changes = diff(self.desired(), self.parse(self.present(compute)))
        self.update(compute, changes)

    def present(self, compute: Compute) -> Json:
        """What is there now."""
        body = self.fetch(compute)
        if body is None:
            raise Transient(
                f"{self.name} went away while it was being changed.",
                repair="Run again: what is missing is made.",
            )
        return body

    def edit(self, compute: Compute, change: Callable[[Json], None]) -> None:
        """Change what is there now, and again when it was somebody else's turn meanwhile."""
        for left in reversed(range(TRIES)):
            try:
                change(self.present(compute))
                break
            except ApiError as error:
                if error.remedy is not Remedy.REFETCH or not left:
                    raise

    def why_not(self, change: Change) -> str:
        """Why what exists cannot be changed so; empty when it can. Pure."""
        return self.fixed.get(change.attribute, "")

    def instead(self, change: Change) -> str:
        """What a person does about it; empty: puts the spec back, or replaces it."""
        return self.by_hand(change) if self.lent else ""

    def by_hand(self, change: Change) -> str:
        """How a person makes or changes what is only looked at."""
        if change.missing:
            return "Create it, or take its name out of the spec, and one is made."
        return "Change it by hand, change the spec, or name another one in the spec."

    def replaced(self, change: Change) -> NeedsReplacement | None:
        """What keeps a change from being made in place; None when nothing does. Pure."""
        if change.missing:
            return None
        why = "it is not this server's" if self.lent else self.why_not(change)
        if not why:
            return None
        repair = self.instead(change)
        return NeedsReplacement(self.name, change.attribute, why, change=change, repair=repair)

    def refused(self, change: Change) -> BootstrapError | None:
        """What a run would end with that tries to make a change; None when it can. Pure."""
        if change.missing and self.lent:
            return Final(f"{self.name} does not exist.", repair=self.by_hand(change))
        return self.replaced(change)

    def keep(self, changes: tuple[Change, ...]) -> None:
        """Refuse what cannot be changed in place."""
        for change in changes:
            if needed := self.replaced(change):
                raise needed


class ComputeKind(Kind):
    """A kind that Compute Engine has as a ``collection``, by the name of ``parameter``."""

    collection: ClassVar[str]
    parameter: ClassVar[str]

    @property
    def place(self) -> dict[str, Any]:
        """Region or zone; nothing when it is global."""
        return {}

    @abstractmethod
    def body(self) -> Json:
        """What is sent to create it."""

    @property
    def home(self) -> str:
        """The project in which it is."""
        return self.spec.project

    def request(self, compute: Compute) -> Any:
        where = {"project": self.home, self.parameter: self.id, **self.place}
        return self.api(compute).get(**where)

    def create(self, compute: Compute) -> None:
        method = self.api(compute).insert
        compute.change(method, f"create {self.name}", body=self.body(), **self.place)

    def call(self, compute: Compute, method: str, **arguments: Any) -> None:
        """Change what exists by one method, to the end of its operation."""
        where: dict[str, Any] = {self.parameter: self.id, **self.place}
        change = getattr(self.api(compute), method)
        compute.change(change, f"{method} of {self.name}", **where, **arguments)

    def api(self, compute: Compute) -> Any:
        return getattr(compute.service, self.collection)()

    @property
    def marker(self) -> str:
        """The description of what is ours and can have no labels."""
        return f"{OWNER_LABEL}:{self.spec.name}"

    @property
    def adopt(self) -> str:
        """How a person makes it ours, or lets it be used; the end of a sentence."""
        return f"make its description {self.marker}."

    def owned(self, body: Json) -> None:
        """Refuse what another made, unless the spec says by name to use it."""
        if not self.lent and body.get("description") != self.marker:
            raise NotOurs(self.name, f"{self.marker} in its description", self.adopt)


class ZonalKind(ComputeKind):
    """A kind that lies in one of the spec's zones and carries our label. Wherever it was made, there
    it stays."""

    @property
    def id(self) -> str:
        return self.spec.name

    @property
    def place(self) -> dict[str, Any]:
        return {"zone": self.spec.zone}

    @property
    def labels(self) -> dict[str, str]:
        return {**self.spec.machine.labels, OWNER_LABEL: self.spec.name}

    def fetch(self, compute: Compute) -> Json | None:
        """Ours, wherever it is; else what has our name in the first zone."""
        here = super().fetch(compute)
        if here and (self._carries(here) or not self.spec.zones):
            return here
        return self._elsewhere(compute) or here

    def _elsewhere(self, compute: Compute) -> Json | None:
        """Ours in another zone: names are unique within a zone only."""
        query = {"project": self.spec.project, "filter": f"name = {self.id}"}
        answer = compute.read(self.api(compute).aggregatedList(**query)) or {}
        places = answer.get("items", {}).values()
        found: list[Json] = [body for place in places for body in place.get(self.collection, ())]
        return next((body for body in found if self._carries(body)), None)

    def inside(self, compute: Compute, zone: str) -> Json | None:
        """What has our name in a zone."""
        where = {"project": self.spec.project, self.parameter: self.id, "zone": zone}
        return compute.read(self.api(compute).get(**where))

    def zone_of(self, body: Json) -> str:
        """Its zone as a state has it: any of the spec's is as good as the first."""
        zone = short(body["zone"])
        return self.spec.zone if zone in self.spec.zones else zone

    def alter(
        self, compute: Compute, now: Json, method: str, *, named: str = "", **arguments: Any
    ) -> None:
        """Change what is there now by one method, to the end of its operation."""
        where: Json = {named or self.parameter: self.id, "zone": short(now["zone"])}
        change = getattr(self.api(compute), method)
        compute.change(change, f"{method} of {self.name}", **where, **arguments)

    def owned(self, body: Json) -> None:
        if not self._carries(body):
            label = f"{OWNER_LABEL}={self.spec.name}"
            adopt = (
                f"adopt it: gcloud compute {self.collection} add-labels {self.id} --labels={label} "
                f"--zone={short(body['zone'])} --project={self.spec.project}"
            )
            raise NotOurs(self.name, label, adopt)

    def _carries(self, body: Json) -> bool:
        return bool(body.get("labels", {}).get(OWNER_LABEL) == self.spec.name)
