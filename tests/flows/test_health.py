"""The flow check-health: a run of it on a real Prefect server, for a machine on paper."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prefect import State
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import Artifact
from prefect.runtime import flow_run

from blocks.shell import Command, Result
from flows import health
from flows.catalog import USER, Server
from flows.checks.check import Check, Verdict
from flows.checks.compared import compared
from flows.checks.machine import Vitals
from flows.checks.own import Own
from flows.health import check_health
from flows.probes import pressure
from flows.resources.deployment import Deployment
from flows.resources.files import File
from flows.spec import ServerSpec
from tests.conftest import ROOT
from tests.flows.machine_faults import SPOILED
from tests.flows.paper_machine import PaperMachine
from tests.flows.paper_world import AUTH, SECRETS, URL, finished
from tests.flows.test_checks import PRESSURE, VITALS
from tests.flows.test_compute_resources import spec
from tests.prefect_server import prefect_api

__all__ = ["prefect_api"]


@pytest.fixture
def api(request: pytest.FixtureRequest) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(request.getfixturevalue("prefect_api")) as client:
        yield client


@dataclass
class Itself:
    """A Shell of the paper machine, as the service user: whoever may not become root."""

    machine: PaperMachine = field(default_factory=finished)
    vitals: dict[str, Any] = field(default_factory=lambda: dict(VITALS))
    pressure: dict[str, Any] = field(default_factory=lambda: dict(PRESSURE))

    def run(self, commands: Sequence[Command], *, together: bool = False) -> list[Result]:
        assert together, "one round trip"
        return [self._one(each) for each in commands]

    def _one(self, command: Command) -> Result:
        assert command.argv[0] not in ("runuser", "sudo")
        if command == Vitals(("prefect-server.service", "prefect-worker.service"), "/api").probe():
            return Result(0, json.dumps(self.vitals), "")
        match command.argv:
            case (python, "-I", "-", folder) if pressure.FIGURES.strip() in command.stdin.replace(
                "\\n", "\n"
            ):
                assert Path(folder, "prefect.toml").exists()
                return Result(0, json.dumps(self.pressure), "")
            case (python, "-I", "-", folder):
                argv = ("runuser", "-u", USER, "--", python, "-I", "-", folder)
                [result] = self.machine.run([Command(argv, command.stdin)], together=True)
                return result
        [result] = self.machine.run([command], together=True)
        return result


@pytest.fixture
def own(tmp_path: Path, api: SyncPrefectClient) -> Own:
    auth, url = json.dumps(AUTH), json.dumps(URL)
    text = f"[server.api]\nauth_string = {auth}\n[server.database]\nconnection_url = {url}\n"
    (tmp_path / "prefect.toml").write_text(text)
    return Own(spec(), api, Itself(), str(tmp_path))


def drifted(own: Own) -> list[Check]:
    """Of the machine, without what the server has to say."""
    there = [each for each in own.others if hasattr(each, "batch")]
    checks = [*compared("drift", there, (), left=own.left), *compared("schema", own.schema, ())]
    return [check for check in checks if check.verdict != "healthy"]


def test_a_machine_as_in_the_spec_has_no_drift_for_its_service_user(own: Own) -> None:
    assert drifted(own) == []
    assert own.secrets == SECRETS


# The package is compared with itself there.
@pytest.mark.parametrize("name", [name for name in SPOILED if name != "other flows"])
def test_what_a_drift_check_names_the_server_names_itself(name: str, own: Own) -> None:
    spoil, named = SPOILED[name]
    assert isinstance(own.shell, Itself)
    spoil(own.shell.machine.debian)
    found = {check.name.partition(": ")[2].partition(":")[0] for check in drifted(own)}
    expected = {each.partition(":")[0] for each in named} - {"package prefect-bootstrap"}
    assert found == expected


def test_what_only_root_may_read_is_left_out_and_said(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = Server(spec(), SECRETS).machine()
    rooted = File("/etc/sudoers.d/x", "", "440")
    monkeypatch.setattr(Server, "machine", lambda self: [*kinds, rooted])
    assert own.left == ["package prefect-bootstrap", rooted.name]
    assert rooted.name not in {each.name for each in own.others}


def test_without_its_prefect_toml_nothing_of_it_is_told(own: Own) -> None:
    Path(own.directory, "prefect.toml").write_text(f"{AUTH} is no TOML")
    [check] = health._clean(own, "schema", lambda: compared("schema", own.schema, ()))
    assert (check.verdict, check.repair) == ("could not check", "Run bootstrap-server.")
    assert AUTH not in check.figure


def test_a_secret_in_what_a_program_said_is_hidden(own: Own) -> None:
    [check] = health._clean(own, "x", lambda: [Check("x", "healthy", f"it said {AUTH}")])
    assert check.figure == "it said ********"


# A run of the flow


def rows(api: SyncPrefectClient, key: str) -> list[dict[str, Any]]:
    found = [each for each in api.read_artifacts() if each.key == key]
    newest = max(found, key=lambda each: each.created or datetime.min.replace(tzinfo=UTC))
    assert isinstance(newest, Artifact)
    return list(json.loads(str(newest.data)))


def fixed(*verdicts: Verdict) -> dict[str, Any]:
    checks = [
        Check(f"group{n}: figure", each, "7", "3", "Look.", 7) for n, each in enumerate(verdicts)
    ]
    return {check.name.partition(":")[0]: partial(list, [check]) for check in checks}


@pytest.fixture
def named() -> ServerSpec:
    return spec(name=f"s-{uuid.uuid4().hex[:8]}")


@pytest.mark.parametrize(
    ("verdicts", "name", "kind", "event"),
    [
        (["healthy", "healthy"], "Completed", "COMPLETED", "healthy"),
        (["healthy", "degraded"], "Degraded", "COMPLETED", "degraded"),
        (["unhealthy", "healthy"], "Unhealthy", "FAILED", "unhealthy"),
        (["healthy", "could not check"], "Unknown", "FAILED", "could-not-check"),
    ],
)
def test_a_run_says_its_verdict_as_state_table_tasks_and_event(
    api: SyncPrefectClient,
    named: ServerSpec,
    verdicts: list[Verdict],
    name: str,
    kind: str,
    event: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "_groups", lambda own, key: fixed(*verdicts))
    sent: list[tuple[Any, ...]] = []
    monkeypatch.setattr(health, "emit_event", lambda *a, **k: sent.append((*a, k)))
    state: State[Any] = check_health(named, return_state=True)
    assert (state.name, state.type) == (name, kind)
    assert [row["verdict"] for row in rows(api, f"{named.name}-health")] == verdicts
    [(event_name, resource, rest)] = sent
    assert event_name == f"prefect-bootstrap.health.{event}"
    assert resource["prefect.resource.id"] == f"prefect-bootstrap.server.{named.name}"
    assert len(rest["payload"]["checks"]) == len([v for v in verdicts if v != "healthy"])


def test_whatever_keeps_a_group_from_being_checked_leaves_the_others(
    api: SyncPrefectClient, named: ServerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the tests' server there is neither an auth string nor a machine of ours."""
    monkeypatch.setattr(health, "Own", partial(Own, directory="/nowhere"))
    parameter: Any = named.model_dump(mode="json", exclude_defaults=True)  # as the deployment's
    state: State[Any] = check_health(parameter, return_state=True)
    assert state.is_failed()
    verdicts = {row["check"]: row["verdict"] for row in rows(api, f"{named.name}-health")}
    assert verdicts["API: answers"] == "unhealthy"
    assert verdicts["worker"] == "could not check"  # no such pool
    assert verdicts["events: way"] == "healthy"
    for group in ("settings", "schema", "scheduler", "database", "machine", "drift", "records"):
        assert verdicts[group] == "could not check"


def test_a_group_that_prefect_kept_from_looking_is_in_the_table(
    api: SyncPrefectClient, named: ServerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(own: Own, group: str, look: health.Look) -> list[Check]:
        if group == "group1":
            raise RuntimeError("not one of ours")
        return look()

    monkeypatch.setattr(health, "_groups", lambda own, key: fixed("healthy", "healthy"))
    monkeypatch.setattr(health, "_clean", broken)
    assert check_health(named, return_state=True).name == "Unknown"
    found = [row["verdict"] for row in rows(api, f"{named.name}-health")]
    assert found == ["healthy", "could not check"]


def test_a_run_that_starts_too_late_ends_at_once(
    api: SyncPrefectClient, named: ServerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(seconds: int) -> State[Any]:
        at = datetime.now(UTC) - timedelta(seconds=seconds)
        monkeypatch.setattr(flow_run, "scheduled_start_time", at, raising=False)
        return check_health(named, return_state=True)

    monkeypatch.setattr(health, "_groups", lambda own, key: fixed("healthy"))
    assert late(295).name == "Completed"
    skipped = late(310)
    assert (skipped.name, skipped.is_completed()) == ("Skipped", True)
    assert len([each for each in api.read_artifacts() if each.key == f"{named.name}-health"]) == 1


def test_the_flow_starts_without_googles_libraries() -> None:
    """They take seconds to import, of the three that a check may cost."""
    heavy = ("prefect_gcp", "googleapiclient", "google.auth")
    code = f"import sys, flows.health; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"


def test_the_spec_is_the_deployments_parameter_and_comes_back_whole(api: SyncPrefectClient) -> None:
    given = spec(self_check={"interval_seconds": 60}, machine={"disk_gb": 20})
    check = next(
        r for r in Server(given, SECRETS).prefect(lambda: api) if isinstance(r, Deployment)
    )
    assert ServerSpec.model_validate(check.parameters["server"]) == given
    shown = str(check.desired()["parameters"])
    assert "server.self_check.interval_seconds=60" in shown
    assert "server.machine.disk_gb=20" in shown
    assert "{" not in shown
