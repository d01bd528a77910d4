"""Secret Manager behind its TLS front, through Google's clients, curl and gcloud.

Google's clients run in a process of their own, because gRPC reads the trusted authorities from the
environment when it loads. What a client does is a script; what it prints is JSON.
"""

import asyncio
import base64
import io
import json
import os
import re
import ssl
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import google_crc32c
import pytest
from aiohttp import web

from rehearsal.certificates import Authority
from rehearsal.config import PROJECT, PROJECT_NUMBER
from rehearsal.errors import Json
from rehearsal.faults import Fault, Faults
from rehearsal.front import serve_front
from rehearsal.gateway import Gateway
from rehearsal.iam import Identities
from rehearsal.projects import Services
from rehearsal.secret_manager import LARGEST, SecretStore
from rehearsal.secret_manager_grpc import HOST, serve_grpc

if TYPE_CHECKING:
    from rehearsal.cloud import Cloud

PARENT = f"projects/{PROJECT}"
BY_NUMBER = f"projects/{PROJECT_NUMBER}"
AUTOMATIC: Json = {"replication": {"automatic": {}}}
OWNER = f"owner@{PROJECT}.iam.gserviceaccount.com"
READER = f"reader@{PROJECT}.iam.gserviceaccount.com"

CLIENTS = """
import json, sys
from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.cloud.secretmanager import SecretManagerServiceClient
from google.oauth2.credentials import Credentials

def client(transport, who):
    return SecretManagerServiceClient(
        credentials=Credentials(token=given["tokens"][who]),
        transport=transport,
        client_options=ClientOptions(api_endpoint=given["endpoint"]),
    )

def failure(function, **kwargs):
    try:
        function(**kwargs)
    except exceptions.GoogleAPICallError as error:
        return [type(error).__name__, error.message, error.reason]

given = json.loads(sys.argv[1])
parent = given["parent"]
grpc, rest = client("grpc", "owner"), client("rest", "owner")
said = {}
"""


@dataclass
class Lab:
    """A cloud of Secret Manager alone, its gateway, and where it listens once it does."""

    identities: Identities = field(default_factory=lambda: Identities(PROJECT))
    services: Services = field(default_factory=Services)
    faults: Faults = field(default_factory=Faults)
    log: io.StringIO = field(default_factory=io.StringIO)
    port: int = 0
    ca: Path = Path()

    def __post_init__(self) -> None:
        self.secrets = SecretStore()
        for email in (OWNER, READER):
            self.identities.create_key(email)
        cloud = SimpleNamespace(
            identities=self.identities,
            secrets=self.secrets,
            faults=self.faults,
            services=self.services,
        )
        self.gateway = Gateway(cast("Cloud", cloud), self.log)

    def token(self, email: str = OWNER) -> str:
        return str(self.identities.token(email)["access_token"])

    async def ask(
        self, verb: str, path: str, body: Json | None = None, **query: str
    ) -> tuple[int, Json]:
        """The gateway's answer to the owner; ``path`` follows ``v1/projects/P/``."""
        url = path if path.startswith("/") else f"/v1/{PARENT}/{path}"
        return await self.gateway.answer(
            HOST, verb, url, query, body or {}, f"Bearer {self.token()}"
        )

    async def ok(self, verb: str, path: str, body: Json | None = None, **query: str) -> Json:
        status, answer = await self.ask(verb, path, body, **query)
        assert status == 200, answer
        return answer

    async def refused(
        self, verb: str, path: str, body: Json | None = None, **query: str
    ) -> tuple[int, str, str]:
        status, answer = await self.ask(verb, path, body, **query)
        assert status != 200, answer
        return status, answer["error"]["status"], answer["error"]["message"]

    async def make(self, secret: str, *values: bytes) -> None:
        await self.ok("POST", "secrets", AUTOMATIC, secretId=secret)
        for value in values:
            await self.ok("POST", f"secrets/{secret}:addVersion", payload(value))

    async def clients(self, script: str) -> Any:
        """What ``script`` leaves in ``said``, run with Google's clients on both transports."""
        given = {
            "endpoint": f"localhost:{self.port}",
            "parent": PARENT,
            "tokens": {
                "owner": self.token(OWNER),
                "reader": self.token(READER),
                "nobody": "ya29.x",
            },
        }
        code = f"{CLIENTS}\n{script}\nprint(json.dumps(said))"
        return json.loads(await self.run(sys.executable, "-c", code, json.dumps(given)))

    async def run(self, *argv: str, **env: str) -> str:
        """The output of a command that trusts our authority."""
        trust = ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
        process = await asyncio.create_subprocess_exec(
            *argv,
            env={**os.environ, **dict.fromkeys(trust, str(self.ca)), "NO_PROXY": "*", **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), 30)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, err.decode()
        return out.decode()


def payload(value: bytes, **more: str) -> Json:
    return {"payload": {"data": base64.b64encode(value).decode(), **more}}


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab()

    async def rest(request: web.Request) -> web.Response:
        status, answer = await lab.gateway.answer(
            HOST,
            request.method,
            request.path,
            request.query,
            await request.read(),
            request.headers.get("Authorization", ""),
        )
        return web.json_response(answer, status=status)

    authority = Authority(tmp_path)
    lab.ca = authority.certificate
    sockets = {"h2": tmp_path / "grpc.sock", "http/1.1": tmp_path / "rest.sock"}
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", rest)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, sockets["http/1.1"]).start()
    server = await serve_grpc(lab.gateway, f"unix:{sockets['h2']}")
    front = await serve_front("127.0.0.1", 0, authority.context(["localhost"]), sockets)
    lab.port = front.sockets[0].getsockname()[1]
    try:
        yield lab
    finally:
        front.close()
        await server.stop(0)
        await runner.cleanup()


def run(test: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


# Through the clients


def test_grpc_and_rest_clients_read_what_the_other_wrote(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as lab:
            said = await lab.clients("""
automatic = {"replication": {"automatic": {}}, "labels": {"app": "prefect"}}
for kind, ours, other in (("grpc", grpc, rest), ("rest", rest, grpc)):
    name = f"{parent}/secrets/from-{kind}"
    ours.create_secret(parent=parent, secret_id=f"from-{kind}", secret=automatic)
    first = ours.add_secret_version(parent=name, payload={"data": b"first"})
    ours.add_secret_version(parent=name, payload={"data": bytes(range(256))})
    ours.disable_secret_version(name=first.name)
    other.update_secret(
        secret={"name": name, "labels": {"seen": "yes"}}, update_mask={"paths": ["labels"]}
    )
    policy = ours.get_iam_policy(request={"resource": name})
    policy.bindings.add(role="roles/secretmanager.secretAccessor", members=["user:a@b.c"])
    ours.set_iam_policy(request={"resource": name, "policy": policy})
    latest = other.access_secret_version(name=f"{name}/versions/latest")
    said[kind] = {
        "name": latest.name,
        "data": list(latest.payload.data),
        "crc": latest.payload.data_crc32c,
        "labels": dict(other.get_secret(name=name).labels),
        "versions": [[v.name[-1], v.state.name] for v in other.list_secret_versions(parent=name)],
        "roles": [b.role for b in other.get_iam_policy(request={"resource": name}).bindings],
        "may": list(other.test_iam_permissions(
            request={"resource": name, "permissions": ["secretmanager.versions.access"]}
        ).permissions),
    }
pages = grpc.list_secrets(request={"parent": parent, "page_size": 1}).pages
said["pages"] = [[s.name for s in page.secrets] for page in pages]
rest.delete_secret(name=f"{parent}/secrets/from-grpc")
grpc.delete_secret(name=f"{parent}/secrets/from-rest")
said["left"] = [s.name for client in (grpc, rest) for s in client.list_secrets(parent=parent)]
""")
        for kind in ("grpc", "rest"):
            assert said[kind] == {
                "name": f"{BY_NUMBER}/secrets/from-{kind}/versions/2",
                "data": list(range(256)),
                "crc": google_crc32c.value(bytes(range(256))),
                "labels": {"seen": "yes"},
                "versions": [["2", "ENABLED"], ["1", "DISABLED"]],
                "roles": ["roles/secretmanager.secretAccessor"],
                "may": ["secretmanager.versions.access"],
            }
        assert said["pages"] == [[f"{BY_NUMBER}/secrets/from-{k}"] for k in ("grpc", "rest")]
        assert said["left"] == []

    run(test())


def test_every_client_gets_the_services_refusals(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as lab:
            await lab.make("there", b"value")
            await lab.ok("POST", "secrets/there/versions/1:disable")
            lab.identities.grant(READER, ["secretmanager.secrets.get"])
            said = await lab.clients("""
there, gone = f"{parent}/secrets/there", f"{parent}/secrets/gone"
for kind in ("grpc", "rest"):
    owner, reader = client(kind, "owner"), client(kind, "reader")
    said[kind] = [
        failure(owner.access_secret_version, name=f"{gone}/versions/latest"),
        failure(owner.create_secret, parent=parent, secret_id="there",
                secret={"replication": {"automatic": {}}}),
        failure(owner.access_secret_version, name=f"{there}/versions/1"),
        failure(reader.get_secret, name=there),
        failure(reader.access_secret_version, name=f"{there}/versions/1"),
    ]
said["malformed"] = failure(grpc.get_secret, name="there")
said["unknown"] = failure(client("grpc", "nobody").get_secret, name=there)
""")
            lab.services.enabled.discard(HOST)
            said["off"] = await lab.clients("""
said = [failure(c.get_secret, name=f"{parent}/secrets/there") for c in (grpc, rest)]
""")
        for kind in ("grpc", "rest"):
            missing, exists, off, allowed, denied = said[kind]
            name = f"{BY_NUMBER}/secrets"
            assert missing[0] == "NotFound"
            assert f"Secret [{name}/gone] not found or has no versions." in missing[1]
            assert exists[0] == ("AlreadyExists" if kind == "grpc" else "Conflict")
            assert f"Secret [{name}/there] already exists." in exists[1]
            assert off[0] == ("FailedPrecondition" if kind == "grpc" else "BadRequest")
            assert f"Secret Version [{name}/there/versions/1] is in DISABLED state." in off[1]
            assert allowed is None
            assert denied[0] == ("PermissionDenied" if kind == "grpc" else "Forbidden")
            assert "secretmanager.versions.access" in denied[1]
        assert said["malformed"][0] == "InvalidArgument"
        assert said["unknown"][0] == "Unauthenticated"
        assert [reason for _, _, reason in said["off"]] == ["SERVICE_DISABLED"] * 2

    run(test())


def test_an_ordered_fault_reaches_grpc(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as lab:
            await lab.make("pw", b"value")
            access = "secretmanager.projects.secrets.versions.access"
            lab.faults.order(Fault(access, status=429, message="Too fast"))
            said = await lab.clients("""
said = failure(grpc.access_secret_version, name=f"{parent}/secrets/pw/versions/1", retry=None)
""")
        assert said[:2] == ["ResourceExhausted", "Too fast"]

    run(test())


def test_curl_gets_rest_with_and_without_http2(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as lab:
            await lab.make("pw", b"value")
            url = f"https://localhost:{lab.port}/v1/{PARENT}/secrets/pw/versions/latest:access"
            auth = ["-H", f"Authorization: Bearer {lab.token()}"]
            for protocol in ("--http2", "--http1.1", "--no-alpn"):
                command = ["curl", "-sS", "--fail", "--cacert", str(lab.ca), protocol]
                answer = json.loads(await lab.run(*command, *auth, url))
                assert answer["payload"]["data"] == base64.b64encode(b"value").decode()

    run(test())


@pytest.mark.gcloud
def test_gcloud_writes_and_reads_a_secret(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as lab:
            (tmp_path / "token").write_text(lab.token())
            (tmp_path / "value").write_bytes(b"another value")
            env = {
                "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
                "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": f"https://localhost:{lab.port}/",
                "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(tmp_path / "token"),
                "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE": str(lab.ca),
                "CLOUDSDK_CORE_PROJECT": PROJECT,
                "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
                "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
                "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
            }
            await lab.make("read", b"a value")
            data = f"--data-file={tmp_path / 'value'}"
            read = ["gcloud", "secrets", "versions", "access", "latest", "--secret=read"]
            _, value = await asyncio.gather(
                lab.run("gcloud", "secrets", "create", "written", data, **env),
                lab.run(*read, **env),
            )
            assert value == "a value"
            answer = await lab.ok("GET", "secrets/written/versions/latest:access")
            assert answer["payload"]["data"] == base64.b64encode(b"another value").decode()

    run(test())


# The service


def test_versions_are_numbered_and_shown_newest_first() -> None:
    async def test() -> None:
        lab = Lab()
        await lab.make("pw", b"one", b"two")
        await lab.ok("POST", "secrets/pw/versions/2:destroy")
        await lab.ok("POST", "secrets/pw:addVersion", payload(b"three"))
        found = await lab.ok("GET", "secrets/pw/versions")
        assert [v["name"].rpartition("/")[2] for v in found["versions"]] == ["3", "2", "1"]
        enabled = await lab.ok("GET", "secrets/pw/versions", filter="state:ENABLED")
        assert enabled["totalSize"] == 2
        latest = await lab.ok("GET", f"/v1/{BY_NUMBER}/secrets/pw/versions/latest:access")
        assert latest == {
            "name": f"{BY_NUMBER}/secrets/pw/versions/3",
            "payload": payload(b"three", dataCrc32c=str(google_crc32c.value(b"three")))["payload"],
        }

    run(test())


def test_latest_is_the_newest_version_even_when_it_is_off() -> None:
    async def test() -> None:
        lab = Lab()
        await lab.make("pw", b"one", b"two")
        await lab.ok("POST", "secrets/pw/versions/2:disable")
        off = f"Secret Version [{BY_NUMBER}/secrets/pw/versions/2] is in DISABLED state."
        refused = await lab.refused("GET", "secrets/pw/versions/latest:access")
        assert refused == (400, "FAILED_PRECONDITION", off)
        await lab.ok("POST", "secrets/pw/versions/2:enable")
        await lab.ok("GET", "secrets/pw/versions/latest:access")

    run(test())


def test_a_destroyed_version_stays_destroyed_and_its_value_is_gone() -> None:
    async def test() -> None:
        lab = Lab()
        await lab.make("pw", b"one")
        destroyed = await lab.ok("POST", "secrets/pw/versions/1:destroy")
        assert destroyed["state"] == "DESTROYED"
        assert destroyed["destroyTime"]
        assert lab.secrets.secrets[f"{BY_NUMBER}/secrets/pw"].versions[0].payload is None
        for change in ("enable", "disable", "destroy"):
            code, status, _ = await lab.refused("POST", f"secrets/pw/versions/1:{change}")
            assert (code, status) == (400, "FAILED_PRECONDITION")
        _, _, message = await lab.refused("GET", "secrets/pw/versions/1:access")
        assert message.endswith("is in DESTROYED state.")

    run(test())


def test_what_is_missing_is_named() -> None:
    async def test() -> None:
        lab = Lab()
        await lab.make("empty")
        name = f"{BY_NUMBER}/secrets"
        for verb, path, message in (
            ("GET", "secrets/none", f"Secret [{name}/none] not found."),
            ("POST", "secrets/none:addVersion", f"Secret [{name}/none] not found."),
            (
                "GET",
                "secrets/none/versions/latest:access",
                f"Secret [{name}/none] not found or has no versions.",
            ),
            (
                "GET",
                "secrets/empty/versions/latest:access",
                f"Secret [{name}/empty] not found or has no versions.",
            ),
            (
                "GET",
                "secrets/empty/versions/7",
                f"Secret Version [{name}/empty/versions/7] not found.",
            ),
        ):
            body = payload(b"x") if verb == "POST" else None
            assert await lab.refused(verb, path, body) == (404, "NOT_FOUND", message)
        assert (await lab.refused("GET", "/v1/projects/other/secrets/empty"))[0] == 403

    run(test())


@pytest.mark.parametrize(
    ("path", "body", "query"),
    [
        ("secrets", AUTOMATIC, {}),
        ("secrets", AUTOMATIC, {"secretId": "a b"}),
        ("secrets", {}, {"secretId": "x"}),
        ("secrets/pw:addVersion", {}, {}),
        ("secrets/pw:addVersion", payload(b""), {}),
        ("secrets/pw:addVersion", payload(bytes(LARGEST + 1)), {}),
        ("secrets/pw:addVersion", {"payload": {"data": "no base64!"}}, {}),
        ("secrets/pw:addVersion", payload(b"value", dataCrc32c="1"), {}),
        ("secrets/pw/versions/latest:destroy", {}, {}),
    ],
)
def test_bad_requests_are_refused(path: str, body: Json, query: dict[str, str]) -> None:
    async def test() -> None:
        lab = Lab()
        await lab.make("pw", b"one")
        code, status, _ = await lab.refused("POST", path, body, **query)
        assert (code, status) == (400, "INVALID_ARGUMENT")

    run(test())


def test_the_largest_payload_in_either_base64_and_a_right_checksum_are_taken() -> None:
    async def test() -> None:
        lab = Lab()
        await lab.make("pw", bytes(LARGEST))
        value = b"\xfb\xff\xfe?"
        given = {
            "data": base64.urlsafe_b64encode(value).decode().rstrip("="),
            "dataCrc32c": str(google_crc32c.value(value)),
        }
        version = await lab.ok("POST", "secrets/pw:addVersion", {"payload": given})
        assert version["clientSpecifiedPayloadChecksum"] is True
        answer = await lab.ok("GET", "secrets/pw/versions/latest:access")
        assert answer["payload"]["data"] == base64.b64encode(value).decode()

    run(test())


def test_an_old_etag_changes_nothing() -> None:
    async def test() -> None:
        lab = Lab()
        await lab.make("pw", b"one")
        secret = await lab.ok("GET", "secrets/pw")
        old = str(secret["etag"])
        assert re.fullmatch(r'"[0-9a-f]+"', old)  # the quotes are part of it
        body = {"labels": {"a": "b"}, "etag": old}
        new = await lab.ok("PATCH", "secrets/pw", body, updateMask="labels")
        assert new["labels"] == {"a": "b"}
        for refused in (
            await lab.refused("PATCH", "secrets/pw", body, updateMask="labels"),
            await lab.refused("DELETE", "secrets/pw", etag=old),
            await lab.refused("POST", "secrets/pw/versions/1:destroy", {"etag": old}),
        ):
            assert refused[:2] == (400, "FAILED_PRECONDITION")
        assert await lab.ok("GET", "secrets/pw") == new
        policy = await lab.ok("GET", "secrets/pw:getIamPolicy")
        await lab.ok("POST", "secrets/pw:setIamPolicy", {"policy": policy})
        again = await lab.refused("POST", "secrets/pw:setIamPolicy", {"policy": policy})
        assert again[:2] == (409, "ABORTED")
        await lab.ok("DELETE", "secrets/pw", etag=str(new["etag"]))

    run(test())


def test_an_alias_leads_to_its_version() -> None:
    async def test() -> None:
        lab = Lab()
        await lab.make("pw", b"one", b"two")
        body = {"versionAliases": {"blue": "1"}}
        await lab.ok("PATCH", "secrets/pw", body, updateMask="versionAliases")
        answer = await lab.ok("GET", "secrets/pw/versions/blue:access")
        assert answer["name"].endswith("/versions/1")

    run(test())


def test_replicas_are_shown_by_the_version() -> None:
    async def test() -> None:
        lab = Lab()
        replicas = {"userManaged": {"replicas": [{"location": "us-central1"}]}}
        await lab.ok("POST", "secrets", {"replication": replicas}, secretId="pw")
        version = await lab.ok("POST", "secrets/pw:addVersion", payload(b"one"))
        assert version["replicationStatus"] == replicas

    run(test())


def test_what_is_not_there_is_said_and_not_ignored() -> None:
    async def test() -> None:
        lab = Lab()
        body = AUTOMATIC | {"ttl": "60s"}
        assert (await lab.refused("POST", "secrets", body, secretId="pw"))[0] == 501
        await lab.make("pw")
        assert (await lab.refused("PATCH", "secrets/pw", {}, updateMask="ttl"))[0] == 501
        regional = f"/v1/{PARENT}/locations/us-central1/secrets"
        assert (await lab.refused("GET", regional))[0] == 501

    run(test())


def test_no_value_is_logged_or_shown(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        lab = Lab()
        value = b"hunter2-hunter2"
        shown = payload(value)["payload"]["data"]
        await lab.make("pw", value)
        refusals = [
            await lab.refused("POST", "secrets/pw:addVersion", payload(value, dataCrc32c="1")),
            await lab.refused("POST", "secrets/pw:addVersion", payload(value, extra="1")),
            await lab.refused("POST", "secrets/pw:addVersion", {"payload": {"data": shown + "!"}}),
            await lab.refused("POST", "secrets/pw:addVersion", {"payload": {"data": [shown]}}),
        ]
        await lab.ok("GET", "secrets/pw/versions/1:access")
        places = [lab.log.getvalue(), caplog.text, *capfd.readouterr(), repr(refusals)]
        places.append(repr(lab.secrets.secrets))
        for place in places:
            assert value.decode() not in place
            assert shown not in place

    caplog.set_level(0)
    run(test())


# The front


@asynccontextmanager
async def fronted(tmp_path: Path, backend: Any) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """A front with one backend for both protocols: its port, and a context for clients."""
    authority, path = Authority(tmp_path), tmp_path / "backend.sock"
    server = await asyncio.start_unix_server(backend, path)
    context = authority.context(["localhost"])
    front = await serve_front("127.0.0.1", 0, context, dict.fromkeys(("h2", "http/1.1"), path))
    client = ssl.create_default_context(cafile=str(authority.certificate))
    try:
        yield front.sockets[0].getsockname()[1], client
    finally:
        front.close()
        server.close()


async def settled(before: set[Any]) -> bool:
    """Whether all tasks but those ``before`` end soon."""
    for _ in range(100):
        if asyncio.all_tasks() <= before:
            return True
        await asyncio.sleep(0.02)
    return False


def test_the_front_carries_bytes_both_ways_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def talk(port: int, context: ssl.SSLContext) -> None:
        reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
        blob = os.urandom(1 << 20)
        writer.write(blob)
        assert await reader.readexactly(len(blob)) == blob
        writer.close()

    async def test() -> None:
        async with fronted(tmp_path, echo) as (port, context):
            before = asyncio.all_tasks()
            await asyncio.gather(*(talk(port, context) for _ in range(5)))
            reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
            writer.write(b"cut short")
            await reader.readexactly(9)
            writer.transport.abort()
            plain = await asyncio.open_connection("localhost", port)
            plain[1].write(b"GET / HTTP/1.0\r\n\r\n")  # no TLS
            await plain[0].read()
            plain[1].close()
            assert await settled(before)

    run(test())


def test_what_the_backend_said_last_arrives(tmp_path: Path) -> None:
    async def speech(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(1 << 20))
        writer.close()

    async def test() -> None:
        async with fronted(tmp_path, speech) as (port, context):
            before = asyncio.all_tasks()
            reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
            await asyncio.sleep(0.1)
            assert len(await reader.read()) == 1 << 20
            writer.close()
            assert await settled(before)

    run(test())


def test_a_slow_client_slows_the_backend_down(tmp_path: Path) -> None:
    written = 0

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        try:
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
                written += 1 << 16
        except ConnectionError:
            writer.close()

    async def test() -> None:
        async with fronted(tmp_path, flood) as (port, context):
            before = asyncio.all_tasks()
            _, writer = await asyncio.open_connection("localhost", port, ssl=context, limit=1 << 10)
            await asyncio.sleep(0.5)
            some = written
            await asyncio.sleep(0.3)
            assert 0 < some == written < 1 << 25
            writer.transport.abort()
            assert await settled(before)

    run(test())


def test_without_a_backend_the_client_is_hung_up_on(tmp_path: Path) -> None:
    async def test() -> None:
        authority = Authority(tmp_path)
        nowhere = dict.fromkeys(("h2", "http/1.1"), tmp_path / "nothing.sock")
        front = await serve_front("127.0.0.1", 0, authority.context(["localhost"]), nowhere)
        port = front.sockets[0].getsockname()[1]
        context = ssl.create_default_context(cafile=str(authority.certificate))
        reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
        assert await reader.read() == b""
        writer.close()
        front.close()

    run(test())
