"""The process that holds the cloud: ``up`` starts it, ``down`` ends it.

It listens on loopback addresses as Google's hosts, and on a unix socket for the command line.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import re
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from aiohttp import web

from rehearsal import compute  # noqa: F401 - registers handlers
from rehearsal.certificates import Authority
from rehearsal.cloud import Cloud
from rehearsal.config import (
    ACCOUNT,
    CONTROL,
    FRONT,
    HOSTS,
    LOG,
    PROJECT,
    REGION,
    SECRETS_FRONT,
    STATE,
    ZONE,
)
from rehearsal.database import Database
from rehearsal.distance import Distance
from rehearsal.errors import ApiError, Json
from rehearsal.faults import Fault
from rehearsal.front import serve_front
from rehearsal.gateway import Gateway
from rehearsal.iam import TUNNEL
from rehearsal.process import CommandFailed
from rehearsal.relay import Refused, Relay, Streams, Target
from rehearsal.secret_manager_grpc import serve_grpc
from rehearsal.store import link, short

CONNECT_SECONDS = 5.0
MAX_BODY = 32 << 20
GRPC, REST = STATE / "grpc.sock", STATE / "rest.sock"
READY = STATE / "ready"


class Daemon:
    """Wires gateway, relay, database and control together."""

    def __init__(self) -> None:
        self.cloud = Cloud()
        (STATE / "authority").mkdir(mode=0o700)
        self.authority = Authority(STATE / "authority")
        self.database = Database(self.authority)
        self.gateway = Gateway(self.cloud, LOG.open("a"))
        self.relay = Relay(self._backend, self._caller)
        self.distance: Distance | None = None
        self._runners: list[web.ServerRunner] = []

    async def start(self) -> None:
        database = asyncio.create_task(self.database.create())
        self.authority.bundle(STATE / "ca-bundle.crt")
        key = self.cloud.identities.create_key(ACCOUNT)
        self.cloud.services.add_first_account(self.cloud.store.new_id())
        write_credentials(key)
        context = self.authority.context(list(HOSTS))
        google = await self._runner(self._google)
        await web.TCPSite(google, FRONT, 443, ssl_context=context).start()
        await web.UnixSite(google, str(REST)).start()
        self._grpc = await serve_grpc(self.gateway, f"unix:{GRPC}")
        front = self.authority.context(["secretmanager.googleapis.com"])
        backends = {"h2": GRPC, "http/1.1": REST}
        self._front = await serve_front(SECRETS_FRONT, 443, front, backends)
        control = await self._runner(self._control)
        await web.UnixSite(control, str(CONTROL)).start()
        await database
        READY.touch()

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        self._front.close()
        await self._grpc.stop(0)
        await self.relay.close()
        await self.cloud.close()
        await self.database.close()

    async def _runner(
        self, handler: Callable[[Any], Awaitable[web.StreamResponse]]
    ) -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(handler, access_log=None), shutdown_timeout=1)
        await runner.setup()
        self._runners.append(runner)
        return runner

    # Google's hosts

    async def _google(self, request: web.BaseRequest) -> web.StreamResponse:
        host = request.host.partition(":")[0]
        if host == "tunnel.cloudproxy.app":
            return await self.relay.handle(request)
        if host == "oauth2.googleapis.com":
            return await self._oauth(request)
        body = await _body(request)
        authorization = request.headers.get("Authorization", "")
        if request.path.startswith("/batch/compute/"):
            return await self._batch(request, host, body.decode(errors="replace"), authorization)
        status, answer = await self.gateway.answer(
            host, request.method, request.rel_url.raw_path, dict(request.query), body, authorization
        )
        return web.json_response(answer, status=status)

    async def _oauth(self, request: web.BaseRequest) -> web.Response:
        if (request.method, request.path) != ("POST", "/token"):
            return web.json_response({"error": "not_found"}, status=404)
        began, status, caller = time.monotonic(), 200, None
        form = dict(parse_qsl((await _body(request)).decode(errors="replace")))
        try:
            answer = self.cloud.identities.exchange(form)
            caller = self.cloud.identities.caller(f"Bearer {answer['access_token']}")
        except ApiError as error:
            status = 400
            answer = {"error": error.reason, "error_description": error.message}
        self.gateway.log_line(caller, "oauth2.token", status, "POST", "/token", began)
        return web.json_response(answer, status=status)

    async def _batch(
        self, request: web.BaseRequest, host: str, body: str, authorization: str
    ) -> web.Response:
        """Several requests in one, as multipart/mixed (gcloud does it for two instances)."""
        boundary = re.search(r'boundary="?([^";]+)', request.headers.get("Content-Type", ""))
        if not boundary:
            return web.json_response({"error": {"code": 400, "message": "no boundary"}}, status=400)
        parts = []
        for part in body.split(f"--{boundary[1]}")[1:-1]:
            outer, _, inner = part.replace("\r\n", "\n").strip("\n").partition("\n\n")
            head, _, content = inner.partition("\n\n")
            verb, _, target = head.partition("\n")[0].rpartition(" ")[0].partition(" ")
            own = re.search(r"(?im)^authorization: *(.*)$", head)
            url = urlsplit(target)
            query = dict(parse_qsl(url.query, keep_blank_values=True))
            status, answer = await self.gateway.answer(
                host,
                verb,
                url.path,
                query,
                content.strip().encode(),
                own[1] if own else authorization,
            )
            number = re.search(r"(?im)^content-id: *<?([^>\n]*)>?$", outer)
            identity = f"Content-ID: <response-{number[1]}>\r\n" if number else ""
            text = json.dumps(answer)
            parts.append(
                f"--{boundary[1]}\r\nContent-Type: application/http\r\n{identity}\r\n"
                f"HTTP/1.1 {status} {'OK' if status == 200 else 'ERROR'}\r\n"
                f"Content-Type: application/json; charset=UTF-8\r\n"
                f"Content-Length: {len(text)}\r\n\r\n{text}\r\n"
            )
        whole = "".join(parts) + f"--{boundary[1]}--\r\n"
        kind = f'multipart/mixed; boundary="{boundary[1]}"'
        return web.Response(body=whole.encode(), headers={"Content-Type": kind})

    # IAP

    def _caller(self, request: web.BaseRequest) -> str | None:
        return self.cloud.identities.caller(request.headers.get("Authorization", ""))

    async def _backend(self, target: Target) -> Streams:
        """Connect to a machine as IAP does; the log tells how it went, by Google's close code."""
        began, code = time.monotonic(), 101
        try:
            streams = await self._connect(target)
            return await self.distance.put_between(streams) if self.distance else streams
        except Refused as refused:
            code = refused.code
            raise
        finally:
            where = f"{target.instance}:{target.port}"
            self.gateway.log_line(target.caller, "iap.tunnel", code, "CONNECT", where, began)

    async def _connect(self, target: Target) -> Streams:
        """The firewall decides whether it gets through."""
        if not target.caller or not self.cloud.identities.may(target.caller, TUNNEL):
            raise Refused(4033, "not authorized")
        path = f"projects/{target.project}/zones/{target.zone}/instances/{target.instance}"
        instance = self.cloud.store.get(link(path))
        if instance is None:
            raise Refused(4047, "failed to lookup instance")
        nic = instance["networkInterfaces"][0]
        try:
            vpc = self.cloud.vpcs[nic["network"]]
            return await vpc.connect(nic["networkIP"], target.port, CONNECT_SECONDS)
        except (OSError, KeyError) as error:
            raise Refused(4003, "failed to connect to backend") from error

    # Control

    async def _control(self, request: web.BaseRequest) -> web.Response:
        body = await _body(request)
        try:
            answer = await self._command(request.method, request.path, json.loads(body or b"{}"))
        except CommandFailed as error:
            return web.json_response({"error": str(error)}, status=500)
        return web.json_response(answer)

    async def _command(self, verb: str, path: str, body: Json) -> Json:
        match verb, path.strip("/").split("/"):
            case "GET", ["status"]:
                return await self._status()
            case "POST", ["faults"]:
                self._check_method(body["method"])
                self.cloud.faults.order(Fault(**body))
            case "DELETE", ["faults"]:
                self.cloud.faults.clear()
            case "POST", ["role"]:
                self.cloud.identities.grant(ACCOUNT, body["permissions"])
            case "POST", ["quota"]:
                self.cloud.quotas.update(body)
            case "POST", ["relay", "cut"]:
                return {"cut": self.relay.cut()}
            case "POST", ["distance"]:
                self.distance = Distance(**body) if body else None
            case "POST", ["database", action]:
                await self.database.command(action)
            case _:
                raise CommandFailed(f"no command {verb} {path}")
        return {"faults": self.cloud.faults.list()}

    def _check_method(self, method: str) -> None:
        known = [name for api in self.gateway.apis for name in api.methods]
        if method not in known:
            near = difflib.get_close_matches(method, known, 1) or ["compute.instances.insert"]
            raise CommandFailed(f"no API has a method {method}; write it as {near[0]}")

    async def _status(self) -> Json:
        unbounded = {w for m in self.cloud.machines.values() for w in m.unbounded}
        return {
            "up": READY.exists(),
            "project": PROJECT,
            "region": REGION,
            "zone": ZONE,
            "account": ACCOUNT,
            "authority": str(self.authority.certificate),
            "instances": [self._instance(i) for i in self.cloud.store.every("instances")],
            "database": await self.database.status(),
            "faults": self.cloud.faults.list(),
            "distance": asdict(self.distance) if self.distance else None,
            "unbounded": sorted(unbounded),
            "limits": LIMITS + [f"{w} of a machine is not bounded here" for w in sorted(unbounded)],
        }

    def _instance(self, instance: Json) -> Json:
        machine = self.cloud.machines.get(instance["id"])
        return {
            "name": instance["name"],
            "zone": short(instance["zone"]),
            "status": instance["status"],
            "address": instance["networkInterfaces"][0]["networkIP"],
            "machine_type": short(instance["machineType"]),
            "namespace": machine.namespace if machine else None,
            "console": str(machine.console) if machine else None,
            "leader": machine.leader if machine else None,
        }


LIMITS = [
    "a machine sees the memory and processors of this host; control groups bound what it gets",
    "machines share this host's kernel and clock",
]
"""What a machine here is not, whatever the kernel allows."""


def write_credentials(key: Json) -> None:
    """The account's key where gcloud and Application Default Credentials look for it."""
    folder = STATE / "gcloud"
    (folder / "configurations").mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / "application_default_credentials.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(key))
    (folder / "configurations/config_default").write_text(
        f"[core]\nproject = {PROJECT}\naccount = {ACCOUNT}\n"
        f"[compute]\nregion = {REGION}\nzone = {ZONE}\n"
    )


async def _body(request: web.BaseRequest) -> bytes:
    chunks = bytearray()
    async for chunk in request.content.iter_any():
        chunks += chunk
        if len(chunks) > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY, len(chunks))
    return bytes(chunks)


async def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    daemon = Daemon()
    await daemon.start()
    await stop.wait()
    await daemon.stop()


if __name__ == "__main__":
    asyncio.run(main())
