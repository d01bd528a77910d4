"""The rehearsal's command line, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rehearsal.config import FRONT
from tests.conftest import Cloud
from tests.rehearsal.conftest import Lab

pytestmark = pytest.mark.rehearsal


def test_a_misspelt_method_is_refused_with_the_right_one(lab: Lab) -> None:
    done = lab.cloud.ctl("fault", "compute.instances.inset", "--status", "500", check=False)
    assert done.returncode == 1
    assert "write it as compute.instances.insert" in done.stderr


def test_a_fault_without_a_failure_is_refused(lab: Lab) -> None:
    done = lab.cloud.ctl("fault", "compute.instances.insert", check=False)
    assert done.returncode == 1
    assert "what should go wrong?" in done.stderr
    assert "ZONE_RESOURCE_POOL_EXHAUSTED" in done.stderr


def test_a_quota_that_is_none_is_refused(lab: Lab) -> None:
    for wrong in ("CPU=8", "CPUS", "CPUS=many"):
        done = lab.cloud.ctl("fault", "--quota", wrong, check=False)
        assert done.returncode == 1
        assert "write a quota as METRIC=N, with METRIC one of CPUS" in done.stderr


def test_a_command_that_does_not_exist(lab: Lab) -> None:
    done = lab.cloud.run("no-such-command", check=False)
    assert done.returncode == 1
    assert "there is no command no-such-command" in done.stderr


def test_exec_passes_the_exit_status_and_its_own_environment(lab: Lab) -> None:
    mine = {"CLOUDSDK_CORE_ACCOUNT": "me@real.example", "GOOGLE_CLOUD_QUOTA_PROJECT": "real"}
    script = "env; getent hosts compute.googleapis.com; exit 7"
    done = lab.cloud.run("sh", "-c", script, check=False, env=mine)
    assert done.returncode == 7
    assert FRONT in done.stdout
    assert "GOOGLE_CLOUD_PROJECT=rehearsal" in done.stdout
    assert "real" not in done.stdout


def test_the_host_does_not_see_the_clouds_names(lab: Lab) -> None:
    hosts = lab.cloud.run("cat", "/etc/hosts").stdout
    assert "googleapis" in hosts
    assert "googleapis" not in Path("/etc/hosts").read_text()


def test_a_role_decides_what_is_forbidden(lab: Lab) -> None:
    role = lab.home / "role.yaml"
    role.write_text("includedPermissions: [compute.zones.list]\n")
    list_zones = "import googleapiclient.discovery as d; a = d.build('compute', 'v1'); "
    zones = list_zones + "print(len(a.zones().list(project='rehearsal').execute()['items']))"
    networks = list_zones + "a.networks().list(project='rehearsal').execute()"
    lab.cloud.ctl("role", str(role))
    try:
        assert lab.python(zones) == "10\n"
        script = f"import googleapiclient.errors as e\ntry: exec({networks!r})\nexcept e.HttpError as x: print(x.reason)"
        expected = (
            "Required 'compute.networks.list' permission for 'projects/rehearsal/global/networks'"
        )
        assert lab.python(script).strip() == expected
    finally:
        lab.cloud.ctl("role", "--everything")


def test_the_log_shows_token_and_call(lab: Lab) -> None:
    script = "import googleapiclient.discovery as d; d.build('compute', 'v1').projects().get(project='rehearsal').execute()"
    before = len(lab.cloud.ctl("log", "--json").stdout.splitlines())
    lab.python(script)
    lines = lab.cloud.ctl("log", "--json").stdout.splitlines()[before:]
    entries = {e["method"]: e for e in map(json.loads, lines)}
    token, call = entries["oauth2.token"], entries["compute.projects.get"]
    assert (token["status"], call["status"]) == (200, 200)
    assert call["caller"] == token["caller"] == "bootstrap@rehearsal.iam.gserviceaccount.com"


def test_a_second_cloud_runs_beside_the_first_and_touches_nothing_of_it(lab: Lab) -> None:
    names = "gcloud", "compute", "networks", "list", "--format=value(name)"
    before = lab.cloud.run(*names).stdout
    second = {"REHEARSAL": "9"}
    try:
        lab.cloud.ctl("up", timeout=100, env=second)
        lab.cloud.run(*names[:3], "create", "beside", "--subnet-mode=auto", env=second)
        assert lab.cloud.run(*names, env=second).stdout.split() == ["beside"]
        assert "rehearsal9 runs on the machine image" in in_vain(lab.cloud, "down", "--image")
    finally:
        lab.cloud.ctl("down", timeout=60, env=second)
    assert lab.cloud.run(*names).stdout == before
    for wrong in ("0", "10", "two"):
        said = in_vain(lab.cloud, "status", env={"REHEARSAL": wrong})
        assert said == f"REHEARSAL={wrong}: write the number of a cloud, from 1 to 9\n"


def in_vain(cloud: Cloud, *args: str, env: dict[str, str] | None = None) -> str:
    """What a command that fails says."""
    done = cloud.ctl(*args, check=False, env=env)
    assert done.returncode == 1
    return done.stderr
