"""What a network's ruleset lets through, told from the rules as text.

``verdict`` walks the text as nftables would, so that a test says what happens to a packet and not
how the lines look. That nftables takes the text is a test of its own, on the real program.
"""

import ipaddress
import re
import subprocess
from dataclasses import dataclass

import pytest

from rehearsal.errors import Json
from rehearsal.firewall import Host, Vpc, ruleset

WEB = Host("10.0.0.2", frozenset({"web"}), "web@p.iam")
DB = Host("10.0.0.3", frozenset({"db"}), "db@p.iam")
BARE = Host("10.0.0.4")
HOSTS = [WEB, DB, BARE]
IAP = "35.235.240.1"
ELSEWHERE = "203.0.113.9"


def rule(priority: int = 1000, **members: object) -> Json:
    """An ingress rule that allows TCP 22 from anywhere, but for what is given."""
    open_ = {} if "denied" in members else {"allowed": [{"IPProtocol": "tcp", "ports": ["22"]}]}
    ranged = {"sourceTags", "sourceServiceAccounts", "destinationRanges"} & members.keys()
    source = {} if ranged else {"sourceRanges": ["0.0.0.0/0"]}
    return {"priority": priority, "direction": "INGRESS", **source, **open_, **members}


def deny(priority: int = 1000, **members: object) -> Json:
    return rule(priority, denied=[{"IPProtocol": "all"}], **members)


@dataclass
class Packet:
    """A new connection's first packet, as the router forwards it."""

    source: str
    target: str
    port: int = 22
    protocol: str = "tcp"
    into: str = "br0"
    out: str = "br0"


def within(text: str, value: str) -> bool:
    """Whether an address or a port is in ``{ a, b-c }``, a CIDR or a number."""
    for entry in text.strip("{} ").split(", "):
        if value.isdecimal():
            first, _, last = entry.partition("-")
            if int(first) <= int(value) <= int(last or first):
                return True
        elif ipaddress.ip_address(value) in ipaddress.ip_network(entry):
            return True
    return False


PART = re.compile(
    r"(ip saddr|ip daddr|meta l4proto|th dport|iifname !=|oifname|ct state) "
    r"(\{[^}]*\}|\S+) ?"
)


def fits(what: str, value: str, packet: Packet) -> bool:
    match what:
        case "ip saddr":
            return within(value, packet.source)
        case "ip daddr":
            return within(value, packet.target)
        case "meta l4proto":
            return packet.protocol in value.strip("{} ").split(", ")
        case "th dport":
            return within(value, str(packet.port))
        case "iifname !=":
            return value.strip('"') != packet.into
        case "oifname":
            return value.strip('"') == packet.out
    assert what == "ct state"  # only new connections are asked about
    return False


def matches(line: str, packet: Packet) -> str | None:
    """The verdict of a line for a packet; None when it does not match."""
    while found := PART.match(line):
        if not fits(found[1], found[2], packet):
            return None
        line = line[found.end() :]
    return line


def verdict(vpc: Vpc, packet: Packet, chain: str = "forward") -> str:
    """``accept`` or ``drop``."""
    chains = dict(re.findall(r"chain (\w+) \{\n(.*?)\n?\}\n", ruleset(vpc), re.DOTALL))
    policy = "accept" if "policy accept" in chains[chain] else "drop"
    return _walk(chains, chain, packet) or policy


def _walk(chains: dict[str, str], chain: str, packet: Packet) -> str | None:
    for line in chains[chain].splitlines():
        said = matches(line, packet)
        if said in ("accept", "drop"):
            return said
        if said == "return":
            return None
        if said and said.startswith("reject"):
            return "drop"
        if said and said.startswith("goto"):
            return _walk(chains, said.split()[1], packet)
        if said and said.startswith("jump") and (end := _walk(chains, said.split()[1], packet)):
            return end
    return None


def reaches(rules: list[Json], target: Host, source: str = ELSEWHERE, **packet: object) -> bool:
    """Whether a packet gets to a host of the network. From outside, through the relay's door."""
    given = Packet(source, target.address, **packet)  # type: ignore[arg-type]  # by name
    return verdict(Vpc(HOSTS, rules), given) == "accept"


@pytest.mark.parametrize(
    ("rules", "web", "db", "bare"),
    [
        ([], 0, 0, 0),
        ([rule()], 1, 1, 1),
        ([rule(disabled=True)], 0, 0, 0),
        # priority
        ([rule(5), deny(6)], 1, 1, 1),
        ([rule(6), deny(5)], 0, 0, 0),
        ([rule(5), deny(5)], 0, 0, 0),
        ([deny(5), rule(5)], 0, 0, 0),
        ([deny(5, targetTags=["db"]), rule(6)], 1, 0, 1),
        ([deny(5, disabled=True), rule(6)], 1, 1, 1),
        # targets
        ([rule(targetTags=["web"])], 1, 0, 0),
        ([rule(targetTags=["web", "db"])], 1, 1, 0),
        ([rule(targetTags=["none"])], 0, 0, 0),
        ([rule(targetServiceAccounts=["db@p.iam"])], 0, 1, 0),
        ([rule(targetServiceAccounts=["none@p.iam"])], 0, 0, 0),
        # what does not match
        ([rule(sourceRanges=["10.0.0.0/8"])], 0, 0, 0),
        ([rule(sourceRanges=["203.0.113.0/24", "::/0"])], 1, 1, 1),
        ([rule(sourceRanges=["::/0"])], 0, 0, 0),
        ([rule(allowed=[{"IPProtocol": "tcp", "ports": ["80", "1000-2000"]}])], 0, 0, 0),
        ([rule(allowed=[{"IPProtocol": "tcp", "ports": ["20-30"]}])], 1, 1, 1),
        ([rule(allowed=[{"IPProtocol": "udp"}])], 0, 0, 0),
        ([rule(allowed=[{"IPProtocol": "udp"}, {"IPProtocol": "tcp"}])], 1, 1, 1),
        ([rule(allowed=[{"IPProtocol": "all"}])], 1, 1, 1),
        ([rule(direction="EGRESS", destinationRanges=["0.0.0.0/0"])], 0, 0, 0),
    ],
)
def test_ingress_follows_the_rules(rules: list[Json], web: int, db: int, bare: int) -> None:
    assert [reaches(rules, host) for host in HOSTS] == [web, db, bare]


@pytest.mark.parametrize(
    ("members", "web", "db", "elsewhere"),
    [
        ({"sourceTags": ["web"]}, 1, 0, 0),
        ({"sourceTags": ["web", "db"]}, 1, 1, 0),
        ({"sourceTags": ["none"]}, 0, 0, 0),
        ({"sourceServiceAccounts": ["db@p.iam"]}, 0, 1, 0),
        ({"sourceTags": ["web"], "sourceRanges": ["203.0.113.0/24"]}, 1, 0, 1),
        ({"sourceRanges": ["10.0.0.3/32"]}, 0, 1, 0),
    ],
)
def test_sources_are_ranges_tags_and_accounts(
    members: Json, web: int, db: int, elsewhere: int
) -> None:
    sources = (WEB.address, DB.address, ELSEWHERE)
    assert [reaches([rule(**members)], BARE, s) for s in sources] == [web, db, elsewhere]


def test_a_host_without_an_account_is_not_any_account() -> None:
    assert not reaches([rule(sourceServiceAccounts=["x@p.iam"])], WEB, BARE.address)
    assert not reaches([rule(targetServiceAccounts=["x@p.iam"])], BARE)


@pytest.mark.parametrize("source", [IAP, ELSEWHERE])
@pytest.mark.parametrize("open_", [True, False])
def test_the_relay_needs_a_rule_as_anybody(source: str, *, open_: bool) -> None:
    vpc = Vpc(HOSTS, [rule(sourceRanges=["35.235.240.0/20"])] if open_ else [])
    packet = Packet(source, WEB.address, out="br0")
    allowed = open_ if source == IAP else True  # the router's own, such as metadata
    assert (verdict(vpc, packet, "output") == "accept") is allowed


def test_the_relay_is_refused_at_once() -> None:
    chain = ruleset(Vpc()).partition("chain refused {\n")[2].splitlines()
    assert chain[:2] == ["ip saddr 35.235.240.0/20 meta l4proto tcp reject with tcp reset", "drop"]


@pytest.mark.parametrize(
    ("ways_out", "source", "leaves"),
    [
        ([], WEB, False),
        (["10.0.0.2"], WEB, True),  # an external address
        (["10.0.0.2"], DB, False),
        (["10.0.0.0/24"], DB, True),  # a NAT of the subnetwork
        (["10.0.0.0/24", "10.0.0.2"], WEB, True),
        (["10.1.0.0/24"], WEB, False),
    ],
)
def test_only_a_nat_or_an_external_address_is_a_way_out(
    ways_out: list[str], source: Host, *, leaves: bool
) -> None:
    packet = Packet(source.address, ELSEWHERE, 443, out="up0")
    assert (verdict(Vpc(HOSTS, [], ways_out), packet) == "accept") is leaves


@pytest.mark.parametrize("target", ["10.9.9.9", "192.168.1.1", "172.16.0.1", "127.0.0.1", "100.64.9.9",
                                    "169.254.1.1"])  # fmt: skip
def test_nothing_leaves_for_somebodys_real_machines(target: str) -> None:
    packet = Packet(WEB.address, target, 443, out="up0")
    assert verdict(Vpc(HOSTS, [], ["0.0.0.0/0"]), packet) == "drop"


@pytest.mark.parametrize("into", ["up0", "services0"])
def test_nothing_comes_in_but_from_machines(into: str) -> None:
    packet = Packet(ELSEWHERE, WEB.address, into=into)
    assert verdict(Vpc(HOSTS, [rule()], ["0.0.0.0/0"]), packet) == "drop"


@pytest.mark.parametrize(
    ("rules", "leaves"),
    [
        ([], True),
        ([deny(direction="EGRESS", destinationRanges=["0.0.0.0/0"])], False),
        ([deny(direction="EGRESS", destinationRanges=["203.0.113.0/24"])], False),
        ([deny(direction="EGRESS", destinationRanges=["198.51.100.0/24"])], True),
        ([deny(direction="EGRESS", destinationRanges=["0.0.0.0/0"], targetTags=["db"])], True),
        ([deny(direction="EGRESS", destinationRanges=["0.0.0.0/0"], disabled=True)], True),
        (
            [
                deny(9, direction="EGRESS", destinationRanges=["0.0.0.0/0"]),
                rule(
                    8,
                    direction="EGRESS",
                    destinationRanges=["0.0.0.0/0"],
                    allowed=[{"IPProtocol": "tcp", "ports": ["443"]}],
                ),
            ],
            True,
        ),
        (
            [
                deny(9, direction="EGRESS", destinationRanges=["0.0.0.0/0"]),
                rule(9, direction="EGRESS", destinationRanges=["0.0.0.0/0"]),
            ],
            False,
        ),
    ],
)
def test_egress_is_open_until_a_rule_denies_it(rules: list[Json], *, leaves: bool) -> None:
    packet = Packet(WEB.address, ELSEWHERE, 443, out="up0")
    assert (verdict(Vpc(HOSTS, rules, ["10.0.0.0/24"]), packet) == "accept") is leaves


def test_traffic_between_machines_needs_both_directions() -> None:
    packet = Packet(WEB.address, DB.address)
    no_egress = deny(direction="EGRESS", destinationRanges=["0.0.0.0/0"])
    assert verdict(Vpc(HOSTS, [rule()]), packet) == "accept"
    assert verdict(Vpc(HOSTS, [rule(), no_egress]), packet) == "drop"
    assert verdict(Vpc(HOSTS, []), packet) == "drop"


@pytest.mark.parametrize(
    "given",
    [rule(), deny(), rule(targetTags=["web"]), rule(direction="EGRESS", destinationRanges=["0.0.0.0/0"])],
)  # fmt: skip
def test_without_a_machine_a_rule_makes_no_line(given: Json) -> None:
    assert ruleset(Vpc(rules=[given])) == ruleset(Vpc())
    assert "{ }" not in ruleset(Vpc(rules=[given], hosts=[BARE]))


def test_the_same_rules_make_the_same_text() -> None:
    rules = [rule(5, sourceTags=["web", "db"]), deny(5), rule(7, targetTags=["db"])]
    first = ruleset(Vpc(HOSTS, rules, ["10.0.0.2", "10.0.0.0/24"]))
    again = ruleset(Vpc(HOSTS[::-1], rules, ["10.0.0.0/24", "10.0.0.2", "10.0.0.2"]))
    assert first == again


ODD = [
    rule(1, allowed=[{"IPProtocol": p} for p in ("tcp", "udp", "icmp", "esp", "ah", "sctp", "all")]),
    rule(2, allowed=[{"IPProtocol": "ipip"}, {"IPProtocol": "47"}, {"IPProtocol": "0"}]),
    rule(3, allowed=[{"IPProtocol": "6", "ports": ["22", "20-30", "22-22", "0-65535"]}]),
    rule(4, sourceRanges=["10.0.0.0/8", "10.0.0.0/24", "10.0.0.2", "::/0"], sourceTags=["web"]),
    deny(5, direction="EGRESS", destinationRanges=["203.0.113.0/24", "203.0.113.9/32"]),
    deny(6, sourceRanges=["0.0.0.0/0", "10.0.0.0/8"], targetTags=["web", "db"]),
]  # fmt: skip


@pytest.mark.rehearsal
@pytest.mark.parametrize(
    "vpc",
    [Vpc(), Vpc(HOSTS), Vpc(HOSTS, ODD, ["10.0.0.2", "10.0.0.0/24"]), Vpc(rules=ODD)],
    ids=["empty", "hosts", "everything", "no hosts"],
)
def test_nftables_takes_the_text(vpc: Vpc) -> None:
    check = ["unshare", "-n", "nft", "--check", "--file", "-"]
    done = subprocess.run(
        check, input=ruleset(vpc), capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
