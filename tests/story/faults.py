"""What hands, updates and faults do to a server: the table behind the fault matrix.

A row spoils one thing from outside, through gcloud, a root shell, SQL or the new server's API, and
says which attributes a drift check then names. A bootstrap heals it, unless the row says what the
bootstrap says instead, and what a person has to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Found = frozenset[tuple[str, str]]
"""Resource and attribute; the attribute is empty where the resource is gone."""


class Step(NamedTuple):
    """One thing that is done; ``tool`` is a method of Story."""

    tool: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """One row."""

    name: str
    spoil: tuple[Step, ...]
    found: Found
    unchecked: tuple[str, ...] = ()
    """The stages of which nothing else can be checked meanwhile, or not all."""
    told: tuple[str, ...] = ()
    """What the message of a bootstrap has that cannot heal it."""
    by_hand: tuple[Step, ...] = ()


def google(command: str) -> Step:
    return Step("google", tuple(command.split()))


def root(script: str) -> Step:
    return Step("root", (script,))


def sql(statement: str) -> Step:
    return Step("sql", (statement,))


def api(verb: str, path: str, body: str = "{}") -> Step:
    return Step("api", (verb, path, body))


def fault(
    name: str,
    *spoil: Step,
    found: dict[str, str],
    unchecked: Sequence[str] = (),
    told: Sequence[str] = (),
    by_hand: Sequence[Step] = (),
) -> Fault:
    """``found``: resource → attributes, with commas between them."""
    pairs = ((what, attribute) for what, names in found.items() for attribute in names.split(","))
    return Fault(name, spoil, frozenset(pairs), tuple(unchecked), tuple(told), tuple(by_hand))


VM, NET, ROUTER = "instance prefect-1", "network prefect-1-net", "router prefect-1-router"
SSH, CLIENTS = "firewall rule prefect-1-ssh-iap", "firewall rule prefect-1-clients"
EXPOSURE = "exposure of prefect-1"
HOME, UNITS = "/var/lib/prefect", "/etc/systemd/system"
TOML, WORKER_TOML = f"{HOME}/.prefect/prefect.toml", f"{HOME}/worker/prefect.toml"
UNIT, WORKER_UNIT = f"{UNITS}/prefect-server.service", f"{UNITS}/prefect-worker.service"
SERVER, WORKER = "service prefect-server", "service prefect-worker"
POOL, CHECK = "work pool server", "deployment check-health/prefect-1"
UPDATES, SSHD = "/etc/apt/apt.conf.d/99prefect.conf", "/etc/ssh/sshd_config.d/00-prefect.conf"
JOURNALD = "/etc/systemd/journald.conf.d/prefect.conf"
UPDATE = "compute instances update prefect-1"
ANSWERED = "server's answers"
ON_IT = ("machine", "database", "prefect")
NEXT, BOTH = "next run", "next run,last run"

# Until both services are up: the server answers, and the worker of this start has found it.
UP = root(
    "for _ in $(seq 160); do sleep 0.5;"
    " curl -sf -o /dev/null http://127.0.0.1:4200/api/health || continue;"
    " id=$(systemctl show --value --property=InvocationID prefect-worker);"
    ' journalctl --quiet _SYSTEMD_INVOCATION_ID="$id" | grep -q "started!" && exit 0;'
    " done; exit 1"
)
# Until the scheduler has made the next run again, which what was changed has deleted.
SCHEDULED = sql(
    "DO $$ BEGIN FOR i IN 1..120 LOOP"
    " EXIT WHEN EXISTS (SELECT FROM flow_run WHERE state_type = 'SCHEDULED');"
    " PERFORM pg_sleep(0.5); END LOOP; END $$"
)
UV = "/opt/prefect/uv-*/bin/uv --quiet pip install --no-deps --python"
# One more line in the metadata's ssh-keys.
SECOND_KEY = """
gcloud compute instances describe prefect-1 --format=json |
    python3 -c 'import json, sys
items = json.load(sys.stdin)["metadata"]["items"]
print(*(item["value"] for item in items if item["key"] == "ssh-keys"))
print("mallory:ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2u mallory")' |
    gcloud compute instances add-metadata prefect-1 --metadata-from-file=ssh-keys=/dev/stdin
"""

# fmt: off
CLOUD = (
    fault("a deleted firewall rule", google("compute firewall-rules delete prefect-1-clients"), found={CLIENTS: ""}),
    fault("a range opened to the internet", google("compute firewall-rules update prefect-1-ssh-iap --source-ranges=0.0.0.0/0"), found={SSH: "sourceRanges"}),
    fault("a disabled rule", google("compute firewall-rules update prefect-1-clients --disabled"), found={CLIENTS: "disabled"}),
    fault("a stranger's rule that opens SSH", google("compute firewall-rules create anyone --network=prefect-1-net --allow=tcp:22 --source-ranges=0.0.0.0/0"), found={EXPOSURE: "port 22 open to"}, told=(f"Left as they are: {EXPOSURE}",), by_hand=(google("compute firewall-rules delete anyone"),)),
    fault("a stranger's rule that opens the port", google("compute firewall-rules create partners --network=prefect-1-net --allow=tcp:4000-5000 --source-ranges=10.0.0.0/8 --target-tags=prefect-1"), found={EXPOSURE: "port 4200 open to"}, told=(f"Left as they are: {EXPOSURE}",), by_hand=(google("compute firewall-rules delete partners"),)),
    fault("a deleted NAT", google("compute routers nats delete prefect-1-nat --router=prefect-1-router"), found={ROUTER: "nat"}),
    fault("a NAT for every subnet", google("compute routers nats update prefect-1-nat --router=prefect-1-router --nat-all-subnet-ip-ranges"), found={ROUTER: "nat.sources,nat.subnets"}),
    fault("a deleted router", google("compute routers delete prefect-1-router"), found={ROUTER: ""}),
    fault("no private Google access", google("compute networks subnets update prefect-1-subnet --no-enable-private-ip-google-access"), found={"subnet prefect-1-subnet": "privateIpGoogleAccess"}),
    fault("another routing mode", google("compute networks update prefect-1-net --bgp-routing-mode=global"), found={NET: "routingMode"}),
    fault("a deleted account", google("iam service-accounts delete prefect-vm@rehearsal.iam.gserviceaccount.com"), found={"service account prefect-vm@rehearsal.iam.gserviceaccount.com": ""}),
    fault("a changed label", google(f"{UPDATE} --update-labels=tier=other"), found={VM: "labels.tier"}),
    fault("a removed label of the disk", google("compute disks update prefect-1 --remove-labels=tier"), found={"disk prefect-1": "labels.tier"}),
    fault("OS Login", google("compute instances add-metadata prefect-1 --metadata=enable-oslogin=TRUE"), found={VM: "metadata.enable-oslogin"}, unchecked=ON_IT),
    fault("a startup script", google("compute instances add-metadata prefect-1 --metadata=startup-script=id"), found={VM: "metadata.startup-script"}),
    fault("a second SSH key", Step("shell", (SECOND_KEY,)), found={VM: "metadata.ssh-keys"}),
    fault("a removed tag", google("compute instances remove-tags prefect-1 --tags=prefect-1"), found={VM: "tags.prefect-1"}, unchecked=ON_IT),
    fault("no deletion protection", google(f"{UPDATE} --no-deletion-protection"), found={VM: "deletionProtection"}),
    fault("an external address", google("compute instances add-access-config prefect-1"), found={VM: "accessConfigs"}),
    fault("no restart after a failure", google("compute instances set-scheduling prefect-1 --no-restart-on-failure"), found={VM: "scheduling.automaticRestart"}),
    fault("no integrity monitoring", google(f"{UPDATE} --no-shielded-integrity-monitoring"), found={VM: "shieldedInstanceConfig.enableIntegrityMonitoring"}),
    fault("a stopped machine", google("compute instances stop prefect-1"), found={VM: "status"}, unchecked=ON_IT),
    fault("a smaller machine with more rights", google("compute instances stop prefect-1"), google("compute instances set-machine-type prefect-1 --machine-type=e2-small"), google("compute instances set-service-account prefect-1 --scopes=cloud-platform"), google("compute instances start prefect-1"), UP, found={VM: "machineType,serviceAccount.scopes"}),
)

MACHINE = (
    fault("an edited prefect.toml", root(f"echo '# by hand' >> {TOML}"), found={f"file {TOML}": "content", SERVER: "configuration"}),
    fault("a prefect.toml that all may read", root(f"chmod 644 {TOML}"), found={f"file {TOML}": "mode"}),
    fault("a prefect.toml of root's", root(f"chown root:root {WORKER_TOML}"), found={f"file {WORKER_TOML}": "owner"}),
    fault("an edited unit", root(f"echo '# by hand' >> {UNIT}"), found={f"file {UNIT}": "content", SERVER: "configuration"}),
    fault("a deleted unit", root(f"rm {WORKER_UNIT}"), found={f"file {WORKER_UNIT}": "", WORKER: "configuration"}),
    fault("a drop-in", root(f"mkdir {WORKER_UNIT}.d; printf '[Service]\\nLimitNOFILE=1024\\n' > {WORKER_UNIT}.d/by-hand.conf; systemctl daemon-reload"), found={WORKER: "overrides"}),
    fault("a drop-in that systemd has not read", root("mkdir -p /run/systemd/system/prefect-worker.service.d; printf '[Service]\\nNice=5\\n' > /run/systemd/system/prefect-worker.service.d/x.conf"), found={WORKER: "overrides"}),
    fault("a stopped server", root("systemctl stop prefect-server"), found={SERVER: "state"}, unchecked=("prefect",)),
    fault("a stopped worker", root("systemctl stop prefect-worker"), found={WORKER: "state"}),
    fault("a worker that is gone", root("systemctl stop prefect-worker"), api("DELETE", "work_pools/server/workers/prefect-1"), found={WORKER: "state", "worker prefect-1": ""}),
    fault("a disabled worker", root("systemctl disable -q prefect-worker"), found={WORKER: "at boot"}),
    fault("a masked worker", root(f"ln -sf /dev/null {WORKER_UNIT}; systemctl daemon-reload"), found={f"file {WORKER_UNIT}": "kind", WORKER: "at boot"}),
    fault("a worker with an old configuration", root(f"cp -p {WORKER_TOML} /root/kept; echo '# old' >> {WORKER_TOML}; systemctl restart prefect-worker; cp -p /root/kept {WORKER_TOML}"), UP, found={WORKER: "configuration"}),
    fault("an upgraded Prefect", root(f"{UV} /opt/prefect/3.8.8-*/tools/prefect prefect==3.9.1"), found={"prefect 3.8.8": "other than locked"}),
    fault("a downgraded Prefect of the worker", root(f"{UV} /opt/prefect/3.8.8-*/worker prefect==3.6.22"), found={"worker's environment": "other than locked", "schema": "revision"}),
    fault("a changed dependency of the server", root(f"{UV} /opt/prefect/3.8.8-*/tools/prefect idna==3.4"), found={"prefect 3.8.8": "other than locked"}),
    fault("a removed uv", root("rm -r /opt/prefect/uv-*"), found={"uv 0.13.9": ""}),
    fault("an edited package of our own", root("echo '# by hand' | tee -a /opt/prefect/3.8.8-*/worker/lib/python3*/site-packages/flows/health.py"), found={"package prefect-bootstrap": "digest"}),
    fault("a service user with a shell", root("usermod --shell /bin/bash prefect"), found={"user prefect": "shell"}),
    fault("a stray .env", root(f"echo PREFECT_LOGGING_LEVEL=DEBUG > {HOME}/.prefect/.env"), found={f"no file {HOME}/.prefect/.env": "exists"}),
    fault("a variable of every service", root("systemctl set-environment PREFECT_LOGGING_LEVEL=DEBUG"), found={SERVER: "settings from the environment", WORKER: "settings from the environment"}),
    fault("no limit of the journal", root(f"rm {JOURNALD}"), found={f"file {JOURNALD}": ""}),
    fault("security updates that are switched off", root(f"rm {UPDATES}"), found={f"file {UPDATES}": ""}),
    fault("an sshd that lets root in", root(f"sed -i 's/^PermitRootLogin.*/PermitRootLogin yes/' {SSHD}; systemctl reload ssh"), found={f"file {SSHD}": "content", "sshd": "permitrootlogin"}),
    fault("a directory that all may read", root(f"chmod 755 {HOME}/worker"), found={f"directory {HOME}/worker": "mode"}),
    fault("a removed package", root("dpkg --remove --force-depends python3-venv"), found={"packages ca-certificates python3-venv unattended-upgrades": "python3-venv"}),
)

DATABASE = (
    fault("a revision behind", sql("UPDATE alembic_version SET version_num = 'c8d5f2a71b3e'"), found={"schema": "revision"}),
    fault("a newer Prefect's revision", sql("UPDATE alembic_version SET version_num = 'ffffffffffff'"), found={"schema": "revision"}, told=("A newer Prefect has written this database",), by_hand=(sql("UPDATE alembic_version SET version_num = 'd4a7e1c93f52'"),)),
    fault("no revision", sql("DELETE FROM alembic_version"), found={"schema": "revision"}, told=("This is not a database of Prefect's",), by_hand=(sql("INSERT INTO alembic_version VALUES ('d4a7e1c93f52')"),)),
    fault("an INVALID index", sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_flow_run__state_type_coalesce_start_time'::regclass"), found={"schema": "invalid indexes"}),
    fault("a lost index", sql("DROP INDEX trgm_ix_flow_name"), found={"schema": "missing indexes"}),
    fault("a lost extension", sql("DROP EXTENSION pg_trgm CASCADE"), found={"schema": "pg_trgm"}),
    fault("a role that may make no tables", sql("REVOKE CREATE ON SCHEMA public FROM pg_database_owner"), found={"database": "new tables"}, told=("run GRANT USAGE, CREATE ON SCHEMA public TO prefect;",), by_hand=(sql("GRANT CREATE ON SCHEMA public TO pg_database_owner"),)),
    fault("a role that may delete nothing", sql("REVOKE DELETE ON flow_run FROM prefect"), found={"database": "rows"}, told=("run GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES",), by_hand=(sql("GRANT DELETE ON flow_run TO prefect"),)),
)

PREFECT = (
    fault("a deleted pool", root("systemctl stop prefect-worker"), api("DELETE", "work_pools/server"), found={POOL: "", CHECK: "work pool", "worker prefect-1": "", WORKER: "state"}),  # a worker makes its pool anew
    fault("a paused deployment", api("PATCH", "deployments/{check}", '{"paused": true}'), found={CHECK: "paused", "self-check": NEXT}),
    fault("a deleted deployment", api("DELETE", "deployments/{check}"), found={CHECK: "", "self-check": BOTH}),
    fault("a changed schedule", api("PATCH", "deployments/{check}", '{"schedules": [{"schedule": {"interval": 7200}, "active": true, "slug": "interval"}]}'), SCHEDULED, found={CHECK: "schedule"}),
    fault("changed parameters", api("PATCH", "deployments/{check}", '{"parameters": {"port": 4201}}'), SCHEDULED, found={CHECK: "parameters"}),
    fault("a paused pool", api("PATCH", "work_pools/server", '{"is_paused": true}'), found={POOL: "paused"}),
    fault("a setting that beats prefect.toml", root(f"mkdir {UNIT}.d; printf '[Service]\\nEnvironment=PREFECT_SERVER_EVENTS_RETENTION_PERIOD=P2D\\n' > {UNIT}.d/by-hand.conf; systemctl daemon-reload; systemctl restart prefect-server"), UP, found={SERVER: "overrides,settings from the environment", ANSWERED: "server.events.retention_period"}),
    fault("a .env that is in force", root(f"echo PREFECT_SERVER_EVENTS_RETENTION_PERIOD=P2D > {HOME}/.prefect/.env; chmod 644 {HOME}/.prefect/.env; systemctl restart prefect-server"), UP, found={f"no file {HOME}/.prefect/.env": "exists", ANSWERED: "server.events.retention_period"}),
)

# fmt: on
FAULTS = (*CLOUD, *MACHINE, *DATABASE, *PREFECT)
