"""The way in: firewall rules for SSH from IAP and for the server's clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from blocks.compute import Compute, Json
from flows.reconcile import Change, State
from flows.resources.kind import placed
from flows.resources.network import ELSEWHERE, InVpc, Network
from flows.spec import IAP_RANGE, ServerSpec


@dataclass(frozen=True)
class Firewall(InVpc):
    """A rule that lets ``sources`` reach one TCP ``port`` of the server, told by its tag."""

    part: str
    port: int
    sources: tuple[str, ...]
    noun, collection, parameter = "firewall rule", "firewalls", "firewall"
    fixed: ClassVar[Mapping[str, str]] = {
        **ELSEWHERE,
        "direction": "it is chosen when a rule is made",
    }

    @property
    def id(self) -> str:
        return self.spec.named(self.part)

    @property
    def adopt(self) -> str:
        return (
            f"adopt it: gcloud compute firewall-rules update {self.id} "
            f"--description={self.marker} --project={self.home}"
        )

    def by_hand(self, change: Change) -> str:
        line = (
            f"gcloud compute firewall-rules create {self.id} --project={self.home} "
            f"--network={Network(self.spec).id} --direction=INGRESS --priority=1000 "
            f"--allow=tcp:{self.port} --source-ranges={','.join(self.sources)} "
            f"--target-tags={self.spec.name}"
        )
        return f"{'Make it' if change.missing else 'Delete it and make it again'}: {line}"

    def desired(self) -> State:
        return self._state(self.body())

    def body(self) -> Json:
        return {
            "name": self.id,
            "description": self.marker,
            "network": Network(self.spec).link,
            "direction": "INGRESS",
            "priority": 1000,
            "disabled": False,
            "allowed": [{"IPProtocol": "tcp", "ports": [str(self.port)]}],
            "sourceRanges": list(self.sources),
            "targetTags": [self.spec.name],
        }

    def parse(self, body: Json) -> State:
        self.owned(body)
        return self._state(body)

    def _state(self, body: Json) -> State:
        """Everything that decides whom the rule lets in."""
        others = ("sourceTags", "sourceServiceAccounts", "destinationRanges")
        return {
            "network": placed(body["network"], self.spec.project),
            **{key: body.get(key) for key in ("direction", "priority", "disabled")},
            "allowed": tuple(map(_traffic, body.get("allowed", ()))),
            "denied": tuple(map(_traffic, body.get("denied", ()))),
            **{
                key: tuple(sorted(body.get(key, ())))
                for key in ("sourceRanges", *others, "targetTags", "targetServiceAccounts")
            },
        }

    def update(self, compute: Compute, changes: tuple[Change, ...]) -> None:
        """Replace the rule: a patch could not take away what another has added to it."""
        self.keep(changes)
        if changes:
            kept = {"logConfig", *self.desired()} - {change.attribute for change in changes}
            ours = {k: v for k, v in self.body().items() if k not in kept}
            theirs = {k: v for k, v in self.present(compute).items() if k in kept}
            self.call(compute, "update", body={**ours, **theirs})


def _traffic(entry: Json) -> str:
    """``tcp:22,80-90``."""
    ports: Any = entry.get("ports", ())
    return f"{entry['IPProtocol']}:{','.join(ports)}"


def firewalls(spec: ServerSpec) -> list[Firewall]:
    """SSH through IAP, and the server's port for its clients."""
    clients = tuple(sorted(set(spec.network.clients or (spec.network.cidr,))))
    return [
        Firewall(spec, "ssh-iap", 22, (IAP_RANGE,)),
        Firewall(spec, "clients", spec.server.port, clients),
    ]
