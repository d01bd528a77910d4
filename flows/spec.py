"""ServerSpec: what a person writes; it becomes the form in the UI.

The five fields without a default are the smallest spec. The catalog is computed from a spec alone,
before anything exists: there is no address in it, and of a secret only the name of its block. The
secret's value is judged by ``check_auth_string`` and ``check_database_url``, before all else.
One refusal, two places: a ``Rule`` is part of the JSON schema too, so the form and ``prefect deploy``
refuse what the flow would refuse, in the same words: what to write instead, never the input.
"""

import re
from collections.abc import Mapping
from datetime import date
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic import ValidationInfo as Info

from flows.rule import Rule

IAP_RANGE = "35.235.240.0/20"  # where IAP's TCP forwarding comes from: Google's, hence not a field
OWNER_LABEL = "prefect-bootstrap"  # on what is ours, with the server's name as its value


def _private(longest: str) -> str:
    """A pattern of the ranges within RFC 1918; ``longest`` is one of the prefixes from /20 on."""
    octet = r"\.(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    ten = rf"10({octet}){{3}}/([89]|1[0-9]|{longest})"
    sixteen = rf"172\.(1[6-9]|2[0-9]|3[01])({octet}){{2}}/(1[2-9]|{longest})"
    return rf"^({ten}|{sixteen}|192\.168({octet}){{2}}/(1[6-9]|{longest}))$"


def _aligned(value: str) -> str:
    if (network := str(ip_network(value, strict=False))) != value:
        raise ValueError(f"write {network}: in a range, the bits after the prefix are zero")
    return value


def _text(value: Any) -> Any:
    """YAML makes a date of a day without quotes, at which ``prefect deploy`` gives up."""
    if isinstance(value, date):
        raise ValueError(f'write the day in quotes: "{value:%Y-%m-%d}"')
    return value


def _calendar(value: str) -> str:
    try:
        date.fromisoformat(value or "2000-01-01")
    except ValueError:
        raise ValueError("write a day that the calendar has, such as 2027-01-31") from None
    return value


_ID = "[a-z][a-z0-9-]{4,28}[a-z0-9]"  # of a project, and of a service account
_NAME = "lower-case letters, digits and dashes, a letter first and no dash last"
_WORD = "lower-case letters, digits, dashes and underscores"
_EXACT = "exact version (a range, or latest, is another one tomorrow)"

# fmt: off
Name = Annotated[str, Rule("^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$", f"up to 40 {_NAME}, such as prefect-1")]
ProjectId = Annotated[str, Rule(f"^{_ID}$", "the project's id, not its title or number, such as my-project-123")]
Zone = Annotated[str, Rule("^[a-z]+(-[a-z]+)+[0-9]+-[a-z0-9]+$", "a zone, such as europe-west4-a")]
Region = Annotated[str, Rule("^([a-z]+(-[a-z]+)+[0-9]+)?$", "the zone's region, such as europe-west4, or nothing")]
HostProject = Annotated[str, Rule(f"^({_ID})?$", "the id of a shared VPC's host project, such as my-host-123, or nothing")]
NetworkName = Annotated[str, Rule("^([a-z]([-a-z0-9]{0,61}[a-z0-9])?)?$", f"up to 63 {_NAME}, such as prefect-net, or nothing")]
SubnetRange = Annotated[str, Rule(_private("2[0-9]"), "a private (RFC 1918) IPv4 range from /8 to /29, such as 10.10.0.0/24"), AfterValidator(_aligned)]
ClientRange = Annotated[str, Rule(_private("2[0-9]|3[0-2]"), "a private (RFC 1918) IPv4 range, such as 10.20.0.0/16; the server is never open to the internet"), AfterValidator(_aligned)]
MachineType = Annotated[str, Rule("^[a-z][a-z0-9]*(-[a-z0-9]+)+$", "a machine type with at least 2 GB of memory, such as e2-medium")]
LabelKey = Annotated[str, Rule(f"^(?!{OWNER_LABEL}$)[a-z][a-z0-9_-]{{0,62}}$", f"a key of up to 63 {_WORD}, a letter first, such as team; {OWNER_LABEL} is taken")]
LabelValue = Annotated[str, Rule("^[a-z0-9_-]{0,63}$", f"a value of up to 63 {_WORD}, such as data")]
ServiceAccount = Annotated[str, Rule(rf"^({_ID}@{_ID}\.iam\.gserviceaccount\.com)?$", "the email of an account made for it, such as prefect-vm@my-project-123.iam.gserviceaccount.com, or nothing")]
SshUser = Annotated[str, Rule("^(?!(root|prefect)$)[a-z_][a-z0-9_-]{0,31}$", f"up to 32 {_WORD}, a letter first, such as bootstrap; neither root nor prefect, whom the server runs as")]
PrefectVersion = Annotated[str, Rule(r"^3\.(6\.(2[2-9]|[3-9][0-9]|[1-9][0-9]{2,})|([7-9]|[1-9][0-9]+)\.(0|[1-9][0-9]*))$", f"one {_EXACT}, from 3.6.22 on (before it, some paths needed no auth string), such as 3.8.8")]
UvVersion = Annotated[str, Rule(r"^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}$", f"one {_EXACT}, such as 0.13.9")]
UiApiUrl = Annotated[str, Rule("^(/api|https://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/api)$", "/api, which works through any tunnel, or a proxy's address, such as https://prefect.example.org/api")]
ResourcePattern = Annotated[str, Rule(r"^\S(.*\S)?$", "a resource as the drift report names it, such as instance prefect-1, or a pattern with *, ? and [ ], such as firewall rule *")]
AttributePattern = Annotated[str, Rule(r"^\S(.*\S)?$", "an attribute as the drift report names it, such as machineType, or a pattern, such as labels.*")]
Reason = Annotated[str, Rule(r"^.*\S.*$", "in one line, why it may differ, such as resized for the migration in ticket 12")]
Day = Annotated[str, BeforeValidator(_text), Rule("^([0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01]))?$", "the last day (UTC) on which it may differ, such as 2027-01-31 (in YAML in quotes), or nothing for no end"), AfterValidator(_calendar)]
BlockName = Annotated[str, Rule("^[a-z0-9-]+$", "the name of a block, such as prefect-auth or prefect-database-url, never the secret itself")]
NotificationBlock = Annotated[str, Rule("^([a-z0-9-]+/[a-z0-9-]+)?$", "type and name of a notification block on the laptop's server, such as slack-webhook/alerts, or nothing")]
# fmt: on


def _positions(schema: dict[str, Any]) -> None:
    """The form shows the fields in the order in which they are written here."""
    for position, field in enumerate(schema["properties"].values()):
        field["position"] = position


class _Group(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, json_schema_extra=_positions
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        fields = cls.model_fields
        keys = f"write keys of {', '.join(fields)}"
        if not isinstance(data, Mapping | cls):
            raise ValueError(f"{keys}, each with its value")
        if isinstance(data, Mapping) and (unknown := [key for key in data if key not in fields]):
            raise ValueError(f"there is no key {unknown[0]!r}: {keys}")
        return data


# fmt: off
class SecretRef(_Group):
    """Where a secret lies: a block, by name."""
    kind: Literal["gcp-secret", "prefect-secret"] = Field("gcp-secret", title="Kind of block", description="gcp-secret: a GcpSecret block, the value is in Secret Manager. prefect-secret: a Secret block, such as on a laptop.")
    block: BlockName = Field(title="Name of the block")


class Network(_Group):
    """Where the server is reached, and from where."""
    name: NetworkName = Field("", title="Network", description="A VPC network that exists, such as prefect-net: it is only looked at. Empty: one is made, the server's name with -net.")
    subnet: NetworkName = Field("", title="Subnet", description="A subnet that exists in that network, such as prefect-subnet: it is only looked at. Empty: one is made, the server's name with -subnet.")
    router: NetworkName = Field("", title="Router", description="A router that exists in that network, such as prefect-router, whose Cloud NAT serves the subnet: it is only looked at. Empty: one is made, the server's name with -router; in a shared VPC, none is looked at.")
    project: HostProject = Field("", title="Shared VPC", description="The host project of a shared VPC, such as my-host-123, which has the network, the subnet and the firewall rules: all of them are only looked at. Empty: the server's project.")
    cidr: SubnetRange = Field("10.10.0.0/24", title="Subnet range")
    nat: bool = Field(True, title="Cloud NAT", description="Whether to make a way out, to such as the package index. false: none is made, one that exists stays, and in a network of its own the server has to be installed from the laptop.")
    clients: tuple[ClientRange, ...] = Field((), max_length=200, title="Client ranges", description="Private IPv4 ranges that may reach the server's port, such as 10.20.0.0/16. Empty: the subnet's.")

    @model_validator(mode="after")
    def _named_with_what_it_lies_in(self) -> "Network":
        if self.project and not (self.name and self.subnet):
            raise ValueError("write name and subnet, too: in a shared VPC nothing is made")
        if (self.subnet or self.router) and not self.name:
            raise ValueError("write name, too: the network in which the subnet and the router are")
        return self


class Machine(_Group):
    """The virtual machine: Debian 12, no external address."""
    type: MachineType = Field("e2-medium", title="Machine type")
    disk_gb: int = Field(10, ge=10, le=65536, title="Disk (GB)", description="Size of the disk in GB, 10 or more, such as 20.")
    labels: dict[LabelKey, LabelValue] = Field({}, max_length=60, title="Labels", description='Labels of your own, such as {"team": "data"}.')
    service_account: ServiceAccount = Field("", title="Service account", description="Email of an existing account to run as, such as vm@my-project-123.iam.gserviceaccount.com. Empty: prefect-vm in the project.")
    downtime: Literal["allowed", "never"] = Field("allowed", title="Downtime", description="Whether a run may stop and start the machine for what needs it, such as another type, another service account, Secure Boot or vTPM. never: such a change is refused.")
    ssh_user: SshUser = Field("bootstrap", title="SSH user", description="Whom the flows log in as, such as bootstrap; not the user the server runs as.")


class Prefect(_Group):
    """What is installed on the machine."""
    version: PrefectVersion = Field("3.8.8", title="Prefect version")
    uv_version: UvVersion = Field("0.13.9", title="uv version")
    install_from: Literal["index", "laptop"] = Field("index", title="Install from", description="Where programs such as Prefect come from, by the same hashes. index: the machine downloads them. laptop: the laptop does and sends them over SSH, 60 MB; the machine downloads nothing, Debian packages neither.")


class Server(_Group):
    """The settings of the Prefect server."""
    port: int = Field(4200, ge=1024, le=65535, title="Port", description="TCP port of the API and the UI, 1024 to 65535, such as 4200.")
    ui_api_url: UiApiUrl = Field("/api", title="Where the UI finds the API")
    events_days: int = Field(7, ge=1, le=3650, title="Keep events (days)", description="Days after which events are deleted, 1 to 3650, such as 7.")
    flow_runs_days: int = Field(30, ge=1, le=3650, title="Keep flow runs (days)", description="Days after which finished flow runs are deleted, 1 to 3650, such as 30.")


class SelfCheck(_Group):
    """The flow check-health, which the server runs on itself, and its bounds: past one a check is degraded, past twice as much (where more is better, below half) it is unhealthy."""
    interval_seconds: int = Field(300, ge=60, le=86400, title="Interval (seconds)", description="Seconds from one check to the next, 60 to 86400, such as 300.")
    answer_seconds: int = Field(5, ge=1, le=60, title="Answer (seconds)", description="Seconds in which the API and the database answer, 1 to 60, such as 5.")
    late_seconds: int = Field(120, ge=60, le=1800, title="Late runs (seconds)", description="Seconds by which a scheduled run may be late, 60 to 1800, such as 120.")
    silence_seconds: int = Field(600, ge=60, le=86400, title="Silent runs (seconds)", description="Seconds a flow run may be pending, or running without a heartbeat (one comes every 180), 60 to 86400, such as 600.")
    worker_seconds: int = Field(90, ge=60, le=3600, title="Worker's heartbeat (seconds)", description="Seconds since the worker has reported (it does every 30), 60 to 3600, such as 90.")
    event_seconds: int = Field(30, ge=5, le=60, title="Events (seconds)", description="Seconds in which an event that was sent can be read, 5 to 60, such as 30.")
    disk_free_percent: int = Field(10, ge=1, le=50, title="Free disk (%)", description="Percent of the disk's space, and of its inodes, that have to be free, 1 to 50, such as 10.")
    memory_free_percent: int = Field(10, ge=1, le=50, title="Free memory (%)", description="Percent of the memory that has to be available, 1 to 50, such as 10.")
    load_per_cpu: int = Field(4, ge=1, le=100, title="Load per CPU", description="Processes that want to run, for each CPU, on the average of 15 minutes, 1 to 100, such as 4.")
    clock_seconds: int = Field(2, ge=1, le=60, title="Clock (seconds)", description="Seconds by which the clock may be off, 1 to 60, such as 2.")
    connections_free_percent: int = Field(10, ge=1, le=50, title="Free connections (%)", description="Percent of the database's connections that have to be free, 1 to 50, such as 10.")
    growth_mb: int = Field(256, ge=1, le=65536, title="Growth (MB)", description="MB by which the database may grow from one check to the next, 1 to 65536, such as 256.")
    transaction_seconds: int = Field(900, ge=20, le=86400, title="Oldest transaction (seconds)", description="Seconds that a transaction in the database may last, 20 to 86400, such as 900.")
    dead_percent: int = Field(50, ge=5, le=95, title="Dead rows (%)", description="Percent of the rows in the database that may wait for its vacuum, 5 to 95, such as 50.")
    certificate_days: int = Field(14, ge=0, le=90, title="Certificate (days)", description="Days that the certificate of an https address of the UI still has to be valid, such as 14. 0: it is not looked at, for a proxy that the server cannot reach.")
    keep_runs: int = Field(300, ge=10, le=10000, title="Keep runs", description="Checks that are kept, with their tables, 10 to 10000, such as 300.")


class Ignored(_Group):
    """What may differ from the spec: it is reported as ignored, and never changed."""
    resource: ResourcePattern = Field(title="Resource")
    attribute: AttributePattern = Field("*", title="Attribute", description="An attribute as the drift report names it, or a pattern, such as labels.*; *, the default, is all of them, and whether the resource exists.")
    reason: Reason = Field(title="Reason")
    until: Day = Field("", title="Until")


class ServerSpec(_Group):
    """A Prefect server on Google Compute Engine."""
    name: Name = Field(title="Server", description="Name of the server and its machine, such as prefect-1; other names begin with it.")
    project: ProjectId = Field(title="Google Cloud project")
    zone: Zone = Field(title="Zone")
    auth_secret: SecretRef = Field(title="Secret: auth string", description="Block, such as prefect-auth, that holds user:password in ASCII, 16 characters or more.")
    database_url_secret: SecretRef = Field(title="Secret: database URL", description="Block that holds a URL such as postgresql+asyncpg://user:password@host:5432/database.")
    region: Region = Field("", validate_default=True, title="Region", description="Region of the subnet and the zone, such as europe-west4. Empty: the one the zone is in.")
    zones: tuple[Zone, ...] = Field((), max_length=10, title="Further zones", description="Other zones of the region, such as europe-west4-b, tried in order when a zone has no room for a machine that is not made yet. Empty: none.")
    network: Network = Field(Network(), title="Network and access", description="Where the server is reached, such as its subnet and its clients.")
    machine: Machine = Field(Machine(), title="Virtual machine", description="The virtual machine, such as its type and the size of its disk.")
    prefect: Prefect = Field(Prefect(), title="Versions", description="What is installed, such as the version of Prefect.")
    server: Server = Field(Server(), title="Settings", description="The server's settings, such as its port and how long it remembers.")
    self_check: SelfCheck = Field(SelfCheck(), title="Self-check", description="How the server checks itself, such as every 300 seconds.")
    notify: NotificationBlock = Field("", title="Notify", description="Notification block on the laptop's server through which both servers say that a check or a bootstrap has failed, such as slack-webhook/alerts; the new server gets a copy. Empty: nobody is told.")
    heal: Literal["off", "safe", "all"] = Field("off", title="Heal", description="What is done about drift without a person. off (in YAML in quotes): nothing, it is reported. safe: heal what loses no data and restarts nothing but Prefect, such as firewall rules, files and stopped services. all: heal whatever needs no replacement, such as the machine's type, which restarts it.")
    ignore: tuple[Ignored, ...] = Field((), max_length=200, title="Ignore list", description="What may differ, such as machineType of instance prefect-1, each with a reason and perhaps a last day.")
    # fmt: on

    @field_validator("region")
    @classmethod
    def _of_zone(cls, region: str, known: Info) -> str:
        found: str = known.data.get("zone", f"{region}-a").rpartition("-")[0]  # no zone: refused already
        if region not in ("", found):
            raise ValueError(f"write {found}, the region of the zone, or nothing")
        return found

    @field_validator("zones")
    @classmethod
    def _of_region(cls, zones: tuple[str, ...], known: Info) -> tuple[str, ...]:
        first = known.data.get("zone", "")  # "": refused already
        region = first.rpartition("-")[0]
        if any(first and zone.rpartition("-")[0] != region for zone in zones):
            raise ValueError(f"write zones of {region}, the region of the zone")
        if len({*zones, first}) <= len(zones):
            raise ValueError("write each zone once, and not the first one again")
        return zones

    @model_validator(mode="after")
    def _has_a_source(self) -> "ServerSpec":
        if self.prefect.install_from == "index" and not (self.network.nat or self.network.name):
            raise ValueError("write install_from: laptop, or nat: true: without a way out, the machine reaches no index")
        return self

    @property
    def all_zones(self) -> tuple[str, ...]:
        """Where the machine may be made, in order."""
        return (self.zone, *self.zones)

    def named(self, part: str) -> str:
        """The name of a part, such as "router"; the longest, of 22 characters, fits Google's 63."""
        return f"{self.name}-{part}"

    @property
    def event_resource(self) -> dict[str, str]:
        """What the events about the server are about, as Prefect wants it."""
        return {
            "prefect.resource.id": f"prefect-bootstrap.server.{self.name}",
            "prefect.resource.name": self.name,
        }


_TEXT = r"([A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+"
_ADDRESS = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?"
_plain = re.compile("[ -~]*").fullmatch
_SSL = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def _refuse(what: str, faults: dict[str, bool], write: str) -> None:
    for fault in (fault for fault, found in faults.items() if found):
        raise ValueError(f"the {what} {fault}; write {write}")


def check_auth_string(value: str) -> str:
    """The value, when it can be the server's auth string; no part of it is in the error."""
    user, _, password = value.partition(":")
    faults = {
        "has more than printable ASCII, perhaps the line break that echo adds": not _plain(value),
        "has no colon with text on both sides": not (user and password),
        "is shorter than 16 characters": len(value) < 16,
    }
    _refuse("auth string", faults, "user:password, 16 or more ASCII characters")
    return value


def check_database_url(value: str) -> str:
    """The value, when Prefect can use it through asyncpg; no part of it is in the error."""
    driver, _, rest = value.partition("://")
    credentials, _, location = rest.rpartition("@")
    place, _, query = location.partition("?")
    address, _, database = place.partition("/")
    encoded = re.fullmatch(f"{_TEXT}:{_TEXT}", credentials)
    host = re.fullmatch(_ADDRESS, address)
    port = (host["port"] or 5432) if host else 0
    options = dict(option.partition("=")[::2] for option in query.split("&"))
    faults = {
        "has more than printable ASCII, perhaps the line break that echo adds": not _plain(value),
        "is for another driver (replace postgresql:// or the like)": driver != "postgresql+asyncpg",
        "lacks user:password@, percent-encoded (%40 for @, %2F for /, %25 for %)": not encoded,
        "lacks the host, or has a port not in 1 to 65535": int(port) not in range(1, 65536),
        "lacks the database after the host": not re.fullmatch(_TEXT, database),
        "has ?sslmode=, which asyncpg does not know (use ?ssl=)": "sslmode" in options,
        f"has an ssl= other than {', '.join(_SSL)}": options.get("ssl", "require") not in _SSL,
    }
    _refuse("database URL", faults, "postgresql+asyncpg://user:password@host:5432/database?ssl=require")
    return value
