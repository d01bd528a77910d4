"""What ails a running server, and by which check it is told: the table behind the health matrix.

A row spoils one thing from outside, and names the checks of check-health that are not healthy then;
or, where no self-check can end, how check-server finds the server. Then it is lifted again; a row
without a lift is one that the server heals alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.story.faults import TOML, WORKER_UNIT, Step, api, root, sql


@dataclass(frozen=True)
class Ailment:
    """One row."""

    name: str
    spoil: tuple[Step, ...]
    named: frozenset[str]
    """Every check that is not healthy; or the one state of check-server."""
    lift: tuple[Step, ...]
    more: bool = False
    """Whether other checks suffer, too, or may."""


def ailment(
    name: str, *spoil: Step, named: str, lift: tuple[Step, ...] = (), more: bool = False
) -> Ailment:
    """``named``: with commas between the checks."""
    return Ailment(name, spoil, frozenset(named.split(", ")), lift, more)


def stopped(unit: str) -> tuple[Step, ...]:
    return (root(f"systemctl stop {unit}"),)


def program(unit: str, source: str) -> Step:
    """A program of the service user's, with asyncpg and ``url``, that goes on for at most five
    minutes; the step is done when it has printed "ready"."""
    return root(
        f"cat > /run/{unit}.py <<'END'\n{DATABASE_URL}{source}\nEND\n"
        f"systemd-run --quiet --collect --unit={unit} --property=User=prefect"
        f" --property=RuntimeMaxSec=300 $(echo /opt/prefect/*/worker/bin/python) /run/{unit}.py\n"
        f"for _ in $(seq 500); do journalctl --quiet --unit={unit} --since=-90s --output=cat |"
        " grep -qx ready && exit 0; sleep 0.2; done; exit 1"
    )


def asked(source: str) -> Step:
    """Python on the machine with ``ask(verb, path, body)``, which asks the server's API."""
    head = """
import base64, datetime, json, re, urllib.request
login = re.search('^auth_string = "(.*)"', open("/var/lib/prefect/worker/prefect.toml").read(), re.M)[1]
def ask(verb, path, body):
    headers = {"authorization": "Basic " + base64.b64encode(login.encode()).decode(),
               "content-type": "application/json"}
    url = "http://127.0.0.1:4200/api/" + path
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method=verb)
    return json.loads(urllib.request.urlopen(request).read() or "null")
"""
    return root(f"python3 - <<'END'\n{head}{source}\nEND")


def killed(unit: str, signal: str) -> Step:
    return root(f"systemctl kill --kill-whom=main --signal={signal} {unit}")


def drop_in(unit: str, line: str) -> Step:
    where = f"/run/systemd/system/{unit}.service.d"
    text = f"mkdir -p {where}; printf '[Service]\\n{line}\\n' > {where}/ail.conf"
    return root(f"{text}; systemctl daemon-reload; systemctl restart {unit}")


def no_drop_in(unit: str) -> Step:
    return root(
        f"rm -r /run/systemd/system/{unit}.service.d; systemctl daemon-reload; systemctl restart {unit}"
    )


SERVER, WORKER = "prefect-server", "prefect-worker"
REVISION = "schema: schema: revision"
NEXT = "scheduler: next runs"

DATABASE_URL = """
import asyncio, asyncpg, tomllib
with open("/var/lib/prefect/.prefect/prefect.toml", "rb") as file:
    url = tomllib.load(file)["server"]["database"]["connection_url"]
url = url.replace("+asyncpg", "").partition("?")[0]
"""
HOLD = """
async def main():
    held = [await asyncpg.connect(url, ssl="require")]
    count = "SELECT sum(numbackends) FROM pg_stat_database"
    while await held[0].fetchval(count) < 93:
        held.append(await asyncpg.connect(url, ssl="require"))
    print("ready", flush=True)
    await asyncio.sleep(300)
asyncio.run(main())
"""
OPEN = """
async def main():
    one = await asyncpg.connect(url, ssl="require")
    await one.execute("BEGIN; SELECT 1")
    await asyncio.sleep(25)
    print("ready", flush=True)
    await asyncio.sleep(230)
asyncio.run(main())
"""
LATE = """
ask("POST", "work_pools/", {"name": "nobody", "type": "process"})
flow = ask("POST", "flows/", {"name": "nobody"})["id"]
made = ask("POST", "deployments/", {"name": "nobody", "flow_id": flow, "work_pool_name": "nobody"})
then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
due = {"type": "SCHEDULED", "state_details": {"scheduled_time": then.isoformat()}}
for _ in range(20):
    ask("POST", f"deployments/{made['id']}/create_flow_run", {"state": due})
"""
GHOST = """
flow = ask("POST", "flows/", {"name": "ghost"})["id"]
ask("POST", "flow_runs/", {"flow_id": flow, "state": {"type": "RUNNING"}})
"""
LONG_AGO = """
UPDATE flow_run SET start_time = now() - interval '1 hour', state_timestamp = now() - interval '1 hour'
    WHERE flow_id = (SELECT id FROM flow WHERE name = 'ghost');
UPDATE flow_run_state SET timestamp = now() - interval '1 hour'
    WHERE flow_run_id IN (SELECT id FROM flow_run WHERE flow_id =
        (SELECT id FROM flow WHERE name = 'ghost'));
"""
GONE = "DELETE FROM flow WHERE name = '{}'"
# A table of Prefect's that takes no new row of some kind, as under a lock or a full disk.
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$;
CREATE TRIGGER refuse BEFORE INSERT ON {} FOR EACH ROW WHEN ({}) EXECUTE FUNCTION refuse();
"""
STALLED = """
DELETE FROM flow_run WHERE state_type = 'SCHEDULED' AND auto_scheduled;
"""
BLOAT = """
CREATE TABLE bloat (x int) WITH (autovacuum_enabled = off);
INSERT INTO bloat SELECT generate_series(1, 900000);
DELETE FROM bloat;
"""
GROWN = """
CREATE TABLE grown (x text);
ALTER TABLE grown ALTER x SET STORAGE EXTERNAL;
INSERT INTO grown SELECT repeat('x', 100000) FROM generate_series(1, 3600);
"""
SKEWED = """
CREATE SCHEMA skewed;
CREATE FUNCTION skewed.clock_timestamp() RETURNS timestamptz LANGUAGE sql
    AS $$ SELECT pg_catalog.clock_timestamp() + interval '9 seconds' $$;
GRANT USAGE ON SCHEMA skewed TO prefect;
ALTER ROLE prefect SET search_path = public, skewed, pg_catalog;
"""
FULL = (
    "fallocate --length=$(($(df --output=avail --block-size=1 / | tail -1) - 200000000)) /var/full"
)
HOG = 'systemd-run --quiet --collect --wait python3 -c \'x = [bytes(8 << 20).replace(b"\\0", b"x") for _ in range(1000)]\' || true'
# "GET /api/events/" of a websocket's handshake; reading events is a POST. A worker that cannot send an
# event crashes its runs.
BLOCKED = (
    "add table inet ail; add chain inet ail in { type filter hook input priority 0; };"
    " add rule inet ail in tcp dport 4200 @th,256,128 0x474554202f6170692f6576656e74732f"
    " reject with tcp reset"
)

# fmt: off
INSIDE = (
    # The database
    ailment("connections that are nearly exhausted", program("held", HOLD), named="database: connections", lift=stopped("held")),
    ailment("a transaction that stays open", program("open", OPEN), named="database: oldest transaction", lift=stopped("open")),
    ailment("a revision set back", sql("UPDATE alembic_version SET version_num = 'c8d5f2a71b3e'"), named=REVISION, lift=(sql("UPDATE alembic_version SET version_num = 'd4a7e1c93f52'"),)),
    ailment("a newer Prefect's revision", sql("UPDATE alembic_version SET version_num = 'ffffffffffff'"), named=REVISION, lift=(sql("UPDATE alembic_version SET version_num = 'd4a7e1c93f52'"),)),
    ailment("an INVALID index", sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_flow_run__state_type_coalesce_start_time'::regclass"), named="schema: schema: invalid indexes", lift=(sql("UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'ix_flow_run__state_type_coalesce_start_time'::regclass"),)),
    ailment("a lost index", sql("ALTER INDEX trgm_ix_flow_name RENAME TO lost"), named="schema: schema: missing indexes", lift=(sql("ALTER INDEX lost RENAME TO trgm_ix_flow_name"),)),
    ailment("a role that may delete nothing", sql("REVOKE DELETE ON log FROM prefect"), named="drift: database: rows", lift=(sql("GRANT DELETE ON log TO prefect"),)),
    ailment("dead rows that nobody clears away", sql(BLOAT), named="database: dead rows", lift=(sql("DROP TABLE bloat"),)),
    ailment("a database that grows", sql(GROWN), named="database: growth", lift=(sql("DROP TABLE grown"),)),
    ailment("a clock that is off", sql(SKEWED), named="machine: clock", lift=(sql("ALTER ROLE prefect RESET search_path; DROP SCHEMA skewed CASCADE"),)),
    # The machine
    ailment("a full disk", root(FULL), named="machine: disk", lift=(root("rm /var/full"),)),
    ailment("a hog that the kernel kills", root(HOG), named="machine: killed for memory", more=True),
    ailment("a unit that failed", root("systemd-run --quiet --unit=ill --wait false || true"), named="machine: failed units", lift=(root("systemctl reset-failed ill"),)),
    ailment("a killed worker", killed(WORKER, "KILL"), named="machine: restarts of prefect-worker.service", more=True),
    ailment("a killed server", killed(SERVER, "KILL"), named="machine: restarts of prefect-server.service", more=True),
    ailment("a worker that is not started at boot", root("systemctl disable --quiet prefect-worker"), named="drift: service prefect-worker: at boot", lift=(root("systemctl enable --quiet prefect-worker"),)),
    ailment("an edited unit", root(f"echo '# by hand' >> {WORKER_UNIT}"), named=f"drift: file {WORKER_UNIT}: content, drift: service prefect-worker: configuration", lift=(root(f"sed -i '$d' {WORKER_UNIT}; systemctl daemon-reload; systemctl restart prefect-worker"),)),
    ailment("a prefect.toml that all may read", root(f"chmod 644 {TOML}"), named=f"drift: file {TOML}: mode", lift=(root(f"chmod 600 {TOML}"),)),
    ailment("a stray .env", root("echo PREFECT_LOGGING_LEVEL=DEBUG > /var/lib/prefect/.prefect/.env"), named="drift: no file /var/lib/prefect/.prefect/.env: exists", lift=(root("rm /var/lib/prefect/.prefect/.env"),)),
    # Prefect
    ailment("a setting that the environment overrides", drop_in(SERVER, "Environment=PREFECT_SERVER_EVENTS_RETENTION_PERIOD=P2D"), named="settings: server's answers: server.events.retention_period, drift: service prefect-server: overrides, drift: service prefect-server: settings from the environment", lift=(no_drop_in(SERVER),)),
    ailment("a server without an auth string", root(f"cp -p {TOML} /root/kept; sed -i /^auth_string/d {TOML}; systemctl restart prefect-server"), named="API: answers", lift=(root(f"cp -p /root/kept {TOML}; systemctl restart prefect-server"),), more=True),
    ailment("a stalled scheduler", sql(REFUSE.format("RAISE 'stalled';", "flow_run", "NEW.auto_scheduled") + STALLED), named=NEXT, lift=(sql("DROP FUNCTION refuse CASCADE"),), more=True),
    ailment("late runs that pile up", asked(LATE), named="scheduler: late runs", lift=(sql(GONE.format("nobody")), sql("DELETE FROM work_pool WHERE name = 'nobody'"))),
    ailment("a run whose process is gone", asked(GHOST), sql(LONG_AGO), named="scheduler: silent runs", lift=(sql(GONE.format("ghost")),)),
    ailment("events that are not stored", sql(REFUSE.format("RETURN NULL;", "events", "true")), named="events: way", lift=(sql("DROP FUNCTION refuse CASCADE"),), more=True),
    ailment("a paused deployment", api("PATCH", "deployments/{check}", '{"paused": true}'), named="drift: deployment check-health/prefect-1: paused", lift=(api("PATCH", "deployments/{check}", '{"paused": false}'),), more=True),
    ailment("an automation that is switched off", asked("[made] = ask('POST', 'automations/filter', {'automations': {'name': {'any_': ['crash-silent-runs']}}})\nask('PATCH', f\"automations/{made['id']}\", {'enabled': False})"), named="drift: automation crash-silent-runs: enabled", lift=(asked("[made] = ask('POST', 'automations/filter', {'automations': {'name': {'any_': ['crash-silent-runs']}}})\nask('PATCH', f\"automations/{made['id']}\", {'enabled': True})"),)),
)

OUTSIDE = (
    ailment("a database that is down", Step("database", ("stop",)), named="Unreachable", lift=(Step("database", ("start",)),)),
    ailment("a frozen server", killed(SERVER, "STOP"), named="Unreachable", lift=(killed(SERVER, "CONT"),)),
    ailment("a stopped server", root("systemctl stop prefect-server"), named="Unreachable", lift=(root("systemctl start prefect-server prefect-worker"),)),
    ailment("a websocket path that is blocked", Step("net", (BLOCKED,)), named="Unhealthy", lift=(Step("net", ("delete table inet ail",)),)),
    ailment("a masked worker", root("systemctl mask --now --runtime --quiet prefect-worker"), named="Stale", lift=(root("systemctl unmask --runtime --quiet prefect-worker; systemctl start prefect-worker"),)),
    ailment("an auth string that only the server knows", Step("shell", ("printf admin:wrong-wrong-wrong | gcloud secrets versions add prefect-auth --data-file=- --quiet",)), named="Unknown", lift=(Step("shell", ("gcloud secrets versions access 1 --secret=prefect-auth | gcloud secrets versions add prefect-auth --data-file=- --quiet",)),)),
)
# fmt: on
