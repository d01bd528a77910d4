"""Any spec that a person may write: refused by the form, or the cloud stage makes it, or it ends with
nothing half made."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flows import preflight
from flows.errors import BootstrapError
from flows.prerequisites import questions
from flows.prerequisites.questions import ALWAYS
from flows.spec import ServerSpec
from tests.flows.faulty_cloud import FaultyLab, faulty
from tests.flows.test_compute_resources import MINIMAL, Lab
from tests.flows.test_preflight import Ways
from tests.paper import REGIONAL

TEXT = st.text(max_size=12) | st.sampled_from(["", "-", "A", "a b", "ä", "x" * 64, "../x", "\n"])
OCTETS = st.integers(0, 260)


def one_of(*right: Any, wrong: st.SearchStrategy[Any] = TEXT) -> st.SearchStrategy[Any]:
    """Mostly what is right."""
    return st.one_of(*(st.sampled_from(right) for _ in range(12)), wrong)


ZONES = one_of("us-central1-a", "us-central1-b", "us-central1-c", "europe-west1-b", "us-central1-z")
RANGES = one_of(
    *("10.10.0.0/24", "10.0.0.0/8", "192.168.7.8/29", "172.16.0.0/12", "10.10.0.1/24"),
    wrong=st.builds("{}.{}.0.0/{}".format, OCTETS, OCTETS, st.integers(0, 33)),
)
TYPES = one_of("e2-medium", "e2-standard-4", "n2-standard-2", "e2-huge-96", "n1-standard-1")
NAMES = one_of("a", "prefect-1", "p" * 40, "x-9")
GROUPS = {
    "network": {
        "name": one_of("", "", "lent", "nobodys"),
        "subnet": one_of("", "", "lent-sub"),
        "router": one_of("", "", "way-out"),
        "cidr": RANGES,
        "clients": st.lists(RANGES, max_size=3),
    },
    "machine": {
        "type": TYPES,
        "disk_gb": one_of(10, 11, 4096, 65536, wrong=st.integers(-1, 70000)),
        "labels": st.dictionaries(one_of("team", "k" * 63), one_of("", "data"), max_size=2),
        "service_account": one_of("", "vm-one@rehearsal.iam.gserviceaccount.com"),
        "downtime": one_of("allowed", "never"),
    },
    "server": {"port": one_of(4200, 1024, 65535, wrong=st.integers(-1, 70000))},
}
SPECS = st.fixed_dictionaries(
    {"name": NAMES, "zone": ZONES},
    optional={
        "zones": st.lists(ZONES, max_size=3),
        **{name: st.fixed_dictionaries({}, optional=fields) for name, fields in GROUPS.items()},
    },
)
OF_THE_PLACE = ("project", "region", "zones", "types", "image")
"""What preflight asks that a spec has to do with."""
UNCOUNTED = "quota SSD_TOTAL_GB"
"""On paper, a disk that is over the quota is made nevertheless."""


def made(lab: FaultyLab) -> dict[str, int]:
    store = lab.caller.cloud.store
    return {kind: len([*store.every(kind)]) for kind in ("instances", "disks")}


def lacks(lab: FaultyLab, wanted: ServerSpec) -> list[str]:
    """What preflight says would end a run, before anything is made."""
    found = Ways(cast(Lab, lab)).inspected(wanted)
    return [row.what for row in found.values() if row.stops]


def ended(lab: FaultyLab, wanted: ServerSpec) -> BootstrapError | None:
    try:
        lab.run(wanted)
    except BootstrapError as error:
        return error
    return None


@pytest.mark.timeout(600)  # a minute, where nobody else is at work
@settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(SPECS)
def test_a_spec_is_refused_or_made_and_never_half_made(members: dict[str, Any]) -> None:
    try:
        wanted = ServerSpec.model_validate(MINIMAL | members)
    except ValidationError:
        event("refused by the form")
        return
    with faulty() as lab, pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "create_table_artifact", lambda *_, **__: None)
        patch.setattr(questions, "ALWAYS", {name: ALWAYS[name] for name in OF_THE_PLACE})
        lab.caller.network("lent", "10.10.0.0/24")
        lent = f"{REGIONAL}/subnetworks/lent-sub/setPrivateIpGoogleAccess"
        lab.caller.change("POST", lent, {"privateIpGoogleAccess": True})
        missing = lacks(lab, wanted)
        if error := ended(lab, wanted):
            event(f"ended: {type(error).__name__}")
            assert error.repair, error
            assert missing, error
            assert made(lab) == {"instances": 0, "disks": 0}, error
            return
        event("made")  # without a look at further zones
        assert [
            w for w in missing if not any(part in w for part in (UNCOUNTED, *wanted.zones))
        ] == []
        assert made(lab) == {"instances": 1, "disks": 1}
        assert not any(outcome.changes for outcome in lab.run(wanted))
