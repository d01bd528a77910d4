"""Google's Python clients and Prefect's blocks, unmodified, against the rehearsal cloud."""

from __future__ import annotations

import json

import pytest

from tests.rehearsal.conftest import Lab

pytestmark = pytest.mark.rehearsal

COMPUTE = """
import sys
from google.cloud import compute_v1 as c

project, zone, region = "rehearsal", "us-central1-a", "us-central1"
networks, subnets, vms = c.NetworksClient(), c.SubnetworksClient(), c.InstancesClient()
network = c.Network(name="gcc", auto_create_subnetworks=False)
networks.insert(project=project, network_resource=network).result(timeout=30)
link = f"projects/{project}/global/networks/gcc"
subnet = c.Subnetwork(name="gcc", network=link, ip_cidr_range="10.10.0.0/24")
subnets.insert(project=project, region=region, subnetwork_resource=subnet).result(timeout=30)
vm = c.Instance(
    name="gcc",
    machine_type=f"zones/{zone}/machineTypes/e2-micro",
    disks=[c.AttachedDisk(boot=True, auto_delete=True,
        initialize_params=c.AttachedDiskInitializeParams(
            source_image="projects/debian-cloud/global/images/family/debian-12"))],
    network_interfaces=[c.NetworkInterface(subnetwork=f"regions/{region}/subnetworks/gcc")],
)
where = dict(project=project, zone=zone)
once = dict(where, instance_resource=vm, request_id="0d1c6ed4-9a4f-4d4d-9f8e-3a5a6f5b7c01")
vms.insert(request=once).result(timeout=30)
vms.insert(request=once).result(timeout=30)  # the same operation again
got = vms.get(**where, instance="gcc")
print(got.status, got.network_interfaces[0].network_i_p)
try:
    vms.insert(**where, instance_resource=vm).result(timeout=30)
except Exception as error:
    print(type(error).__name__, error.code)
print([z for z, page in vms.aggregated_list(project=project) if page.instances])
vms.delete(**where, instance="gcc").result(timeout=60)
subnets.delete(project=project, region=region, subnetwork="gcc").result(timeout=30)
networks.delete(project=project, network="gcc").result(timeout=30)
"""

REST = """
import googleapiclient.discovery, googleapiclient.errors, json
api = googleapiclient.discovery.build("compute", "v1")
body = {"name": "rest", "autoCreateSubnetworks": False}
op = api.networks().insert(project="rehearsal", body=body).execute()
op = api.globalOperations().wait(project="rehearsal", operation=op["name"]).execute()
print(op["status"], "error" in op)
try:
    api.networks().insert(project="rehearsal", body=body).execute()
except googleapiclient.errors.HttpError as error:
    print(json.dumps({"status": error.status_code, "details": error.error_details}))
op = api.networks().delete(project="rehearsal", network="rest").execute()
print(api.globalOperations().wait(project="rehearsal", operation=op["name"]).execute()["status"])
"""

FAULTS = """
import googleapiclient.discovery, googleapiclient.errors
api = googleapiclient.discovery.build("compute", "v1")
print(api.regions().get(project="rehearsal", region="us-central1").execute(num_retries=3)["name"])
"""

SECRET = """
from prefect_gcp import GcpCredentials, GcpSecret
secret = GcpSecret(gcp_credentials=GcpCredentials(project="rehearsal"), secret_name="by-prefect")
print(secret.write_secret(b"pass word"))
print(secret.read_secret())
secret.delete_secret()
"""

OURS = """
import uuid
from prefect_gcp import GcpCredentials
from blocks.compute import Run
from blocks.target import ServerTarget, new_ssh_key
target = ServerTarget(credentials=GcpCredentials(project="rehearsal"), ssh_private_key=new_ssh_key())
compute = target.compute("rehearsal", Run(uuid.uuid4()))
zones = compute.service.zones()
print(compute.read(zones.get(project="rehearsal", zone="us-central1-a"))["status"])
print(compute.read(zones.get(project="rehearsal", zone="mars-north1-a")))
"""


def test_our_own_client_with_prefects_credentials(lab: Lab) -> None:
    assert lab.python(OURS).splitlines()[-2:] == ["UP", "None"]


def test_google_cloud_compute(lab: Lab) -> None:
    running, conflict, scopes = lab.python(COMPUTE, timeout=90).splitlines()
    assert running == "RUNNING 10.10.0.2"
    assert conflict == "Conflict 409"
    assert scopes == "['zones/us-central1-a']"


def test_google_api_python_client(lab: Lab) -> None:
    inserted, refused, deleted = lab.python(REST).splitlines()
    assert inserted == "DONE False"
    assert json.loads(refused) == {
        "status": 409,
        "details": [
            {
                "message": "The resource 'projects/rehearsal/global/networks/rest' already exists",
                "domain": "global",
                "reason": "alreadyExists",
            }
        ],
    }
    assert deleted == "DONE"


def test_a_client_retries_what_google_says_to_retry(lab: Lab) -> None:
    lab.cloud.ctl("fault", "compute.regions.get", "--reason", "rateLimitExceeded", "--count", "2")
    assert lab.python(FAULTS).strip() == "us-central1"
    lines = lab.cloud.ctl("log", "--json").stdout.splitlines()
    statuses = [e["status"] for e in map(json.loads, lines) if e["method"] == "compute.regions.get"]
    assert statuses[-3:] == [403, 403, 200]


def test_prefect_gcp_secret_reads_and_writes(lab: Lab) -> None:
    output = lab.python(SECRET).splitlines()
    assert output[-1] == "b'pass word'"
    log = lab.cloud.ctl("log").stdout
    assert "secretmanager.projects.secrets.versions.access" in log
    assert "pass word" not in log
