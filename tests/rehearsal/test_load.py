"""Ten machines side by side, and two thousand calls at once."""

from __future__ import annotations

import json

import pytest

from tests.rehearsal.conftest import Lab

pytestmark = pytest.mark.rehearsal

TEN = """
import json, time, googleapiclient.discovery
from concurrent.futures import ThreadPoolExecutor

where = {"project": "rehearsal", "zone": "us-central1-b"}

def one(index):
    api = googleapiclient.discovery.build("compute", "v1")
    body = {
        "name": f"ten-{index}",
        "machineType": "zones/us-central1-b/machineTypes/e2-micro",
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": {
            "sourceImage": "projects/debian-cloud/global/images/family/debian-12"}}],
        "networkInterfaces": [{"subnetwork": "regions/us-central1/subnetworks/lab"}],
        "metadata": {"items": [{"key": "enable-guest-attributes", "value": "TRUE"}]},
    }
    op = api.instances().insert(**where, body=body).execute()
    op = api.zoneOperations().wait(**where, operation=op["name"]).execute()
    began = time.monotonic()
    while time.monotonic() - began < 60:  # booted when its agent has published its host keys
        try:
            api.instances().getGuestAttributes(**where, instance=f"ten-{index}", queryPath="hostkeys/").execute()
            break
        except googleapiclient.errors.HttpError:
            time.sleep(0.2)
    vm = api.instances().get(**where, instance=f"ten-{index}").execute()
    return [op["status"], "error" in op, vm["status"], vm["networkInterfaces"][0]["networkIP"]]

with ThreadPoolExecutor(10) as pool:
    print(json.dumps(list(pool.map(one, range(10)))))
    api = googleapiclient.discovery.build("compute", "v1")
    ops = [api.instances().delete(**where, instance=f"ten-{i}").execute() for i in range(10)]
    for op in ops:
        assert api.zoneOperations().wait(**where, operation=op["name"]).execute()["status"] == "DONE"
"""

MANY = """
import collections, json, googleapiclient.discovery
from concurrent.futures import ThreadPoolExecutor

def hundred(thread):
    api = googleapiclient.discovery.build("compute", "v1")
    seen = collections.Counter()
    for i in range(25):
        name = f"many-{thread}-{i}"
        body = {"name": name, "addressType": "EXTERNAL"}
        region = {"project": "rehearsal", "region": "europe-west1"}
        op = api.addresses().insert(**region, body=body).execute()
        done = api.regionOperations().wait(**region, operation=op["name"]).execute()
        seen[done["status"], "error" in done] += 1
        seen["got", api.addresses().get(**region, address=name).execute()["status"]] += 1
        api.addresses().delete(**region, address=name).execute()
    return seen

with ThreadPoolExecutor(20) as pool:
    total = sum(pool.map(hundred, range(20)), collections.Counter())
print(json.dumps({str(key): count for key, count in total.items()}))
"""


def test_ten_inserts_at_once(lab: Lab, network: str) -> None:
    results = json.loads(lab.python(TEN, timeout=110))
    assert [r[:3] for r in results] == [["DONE", False, "RUNNING"]] * 10
    assert len({r[3] for r in results}) == 10


def test_two_thousand_calls_from_twenty_threads(lab: Lab) -> None:
    before = len(lab.cloud.ctl("log", "--json").stdout.splitlines())
    total = json.loads(lab.python(MANY, timeout=110))
    assert total == {"('DONE', False)": 500, "('got', 'RESERVED')": 500}
    lines = lab.cloud.ctl("log", "--json").stdout.splitlines()[before:]
    entries = [json.loads(line) for line in lines]
    statuses = [e["status"] for e in entries if e["method"].startswith("compute.")]
    assert len(statuses) == 2000
    assert set(statuses) == {200}
