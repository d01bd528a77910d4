"""One table says what the flows call and what that needs: it is complete, it has nothing that nobody
calls, role.yaml is made from it, and Google's answers agree with it."""

from __future__ import annotations

import re

import pytest
import yaml

from flows.permissions import ALWAYS, LATER, NARROW, USES, Use, needed, permissions, role
from rehearsal.discovery import Api
from rehearsal.gateway import DOCUMENTS
from rehearsal.iam import permissions as googles
from tests.conftest import ROOT

KINDS = ("network", "subnet", "router", "firewall rule", "service account", "instance")
MORE = {
    # The machine and the disk that is made with it have labels; a disk may be left of another machine.
    "compute.instances.insert": {
        "compute.disks.setLabels",
        "compute.disks.use",
        "compute.instances.setLabels",
        "compute.instances.setMetadata",
        "compute.instances.setTags",
    },
}
LESS = {
    "compute.images.getFromFamily": {"compute.images.getFromFamily"},  # Google's are everybody's
}
"""Where our table differs from the cloud's own, which is more general, and why."""


def called() -> set[str]:
    """The ids of the API methods that flows/ and blocks/ name."""
    found = set()
    files = [p for folder in ("flows", "blocks") for p in (ROOT / folder).rglob("*.py")]
    for source in (file.read_text() for file in files):
        for collection, method in re.findall(r"service\.(\w+)\(\)\.(\w+)\(", source):
            found.add(f"compute.{collection}.{method}")
        for collection, method in re.findall(r'service\.(\w+)\(\), "(\w+)"', source):
            found.add(f"compute.{collection}.{method}")
        if "_api(compute)" in source or "iam.projects()" in source:
            methods = re.findall(r"(?:_api\(compute\)|accounts)\.(\w+)\(", source)
            found |= {
                f"iam.projects.serviceAccounts.{m}" for m in methods if m != "serviceAccounts"
            }
        for api, variable, collection in re.findall(
            r'(\w+) = described\("(\w+)", "v1"\)\.(\w+)\(\)', source
        ):
            methods = re.findall(rf'{api}\.(\w+)\(|{api}, "(\w+)"', source)
            found |= {f"{variable}.{collection}.{''.join(m)}" for m in methods}
        for kind in re.split(r"^class ", source, flags=re.MULTILINE)[1:]:
            collections = re.findall(r'collection, parameter = "[^"]+", "(\w+)"', kind)
            collections += ["instances"] * kind.startswith("Edits")  # of what Instance is
            methods = re.findall(r'self\.(?:call|alter)\(\s*compute, (?:now, )?"(\w+)"', kind)
            methods += re.findall(r"self\.api\(compute\)\.(\w+)", kind)
            for collection in collections:
                every = ["get"] if "def create(" in kind else ["get", "insert"]
                zonal = ["aggregatedList"] if re.search(r"\((ZonalKind|Edits)\)", kind) else []
                found |= {f"compute.{collection}.{m}" for m in [*every, *methods, *zonal]}
    return found | {f"compute.{scope}Operations.wait" for scope in ("zone", "region", "global")}


def test_the_table_has_what_the_flows_call_and_nothing_else() -> None:
    methods = [use.method for use in USES]
    assert len(methods) == len({*methods})
    assert {*methods} == called()
    known = {method for document in DOCUMENTS for method in Api(document).methods}
    assert {*methods} <= known


def test_role_yaml_is_what_the_table_makes() -> None:
    """If this fails: python -m flows.permissions > role.yaml"""
    assert (ROOT / "role.yaml").read_text() == role()


def test_the_role_has_no_permission_that_nobody_uses() -> None:
    granted = yaml.safe_load(role())["includedPermissions"]
    assert len(granted) == len({*granted})
    methods = called()
    assert {*granted} == {p for use in USES if use.method in methods for p in use.permissions}
    assert not {*granted} & {*NARROW}
    assert "compute.subnetworks.useExternalIp" not in granted


@pytest.mark.parametrize("use", USES, ids=lambda use: str(use.method))
def test_the_clouds_own_table_asks_for_the_same(use: Use) -> None:
    theirs = {*googles(use.method)} | MORE.get(use.method, set())
    assert {*use.permissions} == theirs - LESS.get(use.method, set())


def test_what_is_needed_depends_on_what_is_there() -> None:
    assert {use.when for use in USES} == {ALWAYS, LATER, *KINDS}
    assert {*needed(())} < {*needed(("network",))} < {*needed(KINDS)} < {*permissions()}
    assert "compute.networks.create" in needed(("network",))
    assert "compute.networks.create" not in needed(KINDS[1:])
