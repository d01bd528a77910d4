"""API firewall rules, NAT and addresses as one nftables ruleset. Pure.

Google evaluates rules by priority, a deny before an allow of the same priority; what no rule
matches is denied inwards and allowed outwards; connections are stateful. A virtual machine without
an external address and without Cloud NAT has no way out.
Source: https://cloud.google.com/firewall/docs/firewalls
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rehearsal.config import IAP_RANGE, METADATA
from rehearsal.errors import Json

BRIDGE, UPLINK, SERVICES = "br0", "up0", "services0"
RESOLVER = "100.64.0.3"
"""The uplink's resolver; the metadata address answers DNS by way of it, as on Google."""
PRIVATE = "10.0.0.0/8, 100.64.0.0/10, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16, 127.0.0.0/8"
"""Never let out: these would be somebody's real machines."""


@dataclass(frozen=True)
class Host:
    """An instance as the firewall sees it."""

    address: str
    tags: frozenset[str] = frozenset()
    account: str | None = None


@dataclass(frozen=True)
class Vpc:
    """What a network's ruleset follows from; ``ways_out`` are addresses or CIDRs with egress."""

    hosts: list[Host] = field(default_factory=list)
    rules: list[Json] = field(default_factory=list)
    ways_out: list[str] = field(default_factory=list)


def ruleset(vpc: Vpc) -> str:
    """Text for ``nft -f``: replaces whatever the namespace had, in one transaction."""
    ordered = sorted(
        (rule for rule in vpc.rules if not rule.get("disabled")),
        key=lambda rule: (rule["priority"], "allowed" in rule),
    )
    ingress = [line for r in ordered if r["direction"] == "INGRESS" for line in _ingress(r, vpc)]
    egress = [line for r in ordered if r["direction"] == "EGRESS" for line in _egress(r, vpc)]
    out = _set(vpc.ways_out)
    lines = [
        "table inet vpc",
        "delete table inet vpc",
        "table inet vpc {",
        "chain refused {",
        # The relay learns of a refusal at once instead of by a timeout.
        f"ip saddr {IAP_RANGE} meta l4proto tcp reject with tcp reset",
        "drop",
        "}",
        "chain ingress {",
        *ingress,
        "goto refused",
        "}",
        "chain egress {",
        *egress,
        "}",
        "chain forward {",
        "type filter hook forward priority filter; policy drop",
        "ct state established,related accept",
        f'iifname != "{BRIDGE}" drop',
        f"ip daddr {RESOLVER} accept",
        "jump egress",
        f'oifname "{BRIDGE}" goto ingress',
        f'oifname "{SERVICES}" accept',
        f"ip daddr {{ {PRIVATE} }} drop",
        *([f'oifname "{UPLINK}" ip saddr {out} accept'] if out else []),
        "}",
        "chain output {",
        "type filter hook output priority filter; policy accept",
        "ct state established,related accept",
        f'oifname "{BRIDGE}" ip saddr {IAP_RANGE} goto ingress',
        "}",
        "chain resolver {",
        "type nat hook prerouting priority dstnat",
        f"ip daddr {METADATA} meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {RESOLVER}",
        "}",
        "chain leaving {",
        "type nat hook postrouting priority srcnat",
        f'oifname {{ "{UPLINK}", "{SERVICES}" }} masquerade',
        "}",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _ingress(rule: Json, vpc: Vpc) -> list[str]:
    sources = list(rule.get("sourceRanges", ()))
    sources += [
        host.address
        for host in vpc.hosts
        if host.tags & set(rule.get("sourceTags", ()))
        or host.account in rule.get("sourceServiceAccounts", ())
    ]
    verdict = "accept" if "allowed" in rule else "goto refused"
    return _lines(_set(_v4(sources)), _set(_targets(rule, vpc)), rule, verdict)


def _egress(rule: Json, vpc: Vpc) -> list[str]:
    verdict = "return" if "allowed" in rule else "drop"
    ranges = rule.get("destinationRanges", ["0.0.0.0/0"])
    return _lines(_set(_targets(rule, vpc)), _set(_v4(ranges)), rule, verdict)


def _targets(rule: Json, vpc: Vpc) -> list[str]:
    tags, accounts = rule.get("targetTags", ()), rule.get("targetServiceAccounts", ())
    return [
        host.address
        for host in vpc.hosts
        if not (tags or accounts) or host.tags & set(tags) or host.account in accounts
    ]


def _lines(sources: str, targets: str, rule: Json, verdict: str) -> list[str]:
    if not (sources and targets):
        return []
    ends = f"ip saddr {sources} ip daddr {targets}"
    return [
        f"{ends} {match} {verdict}".replace("  ", " ")
        for entry in rule.get("allowed") or rule["denied"]
        for match in _protocol(entry)
    ]


def _protocol(entry: Json) -> list[str]:
    protocol, ports = entry["IPProtocol"].lower(), entry.get("ports", [])
    if protocol == "all":
        return [""]
    match = f"meta l4proto {protocol}"
    return [f"{match} th dport {_set(ports)}"] if ports else [match]


def _v4(ranges: Iterable[str]) -> list[str]:
    return [cidr for cidr in ranges if ":" not in cidr]


def _set(items: Iterable[str]) -> str:
    """An anonymous set; empty text for nothing, since nftables has no empty one."""
    unique = sorted(set(items))
    if "0.0.0.0/0" in unique:
        return "0.0.0.0/0"
    return f"{{ {', '.join(unique)} }}" if unique else ""
