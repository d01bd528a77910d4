"""Networks: namespaces, bridges and veth pairs that the host has no route to.

A VPC is a namespace with a bridge. Every machine has a namespace of its own, joined to the bridge by
an isolated port and with a /32 address, as on Google: all traffic passes the VPC's router, where
nftables sees it. The way out is slirp4netns: a user-mode stack that opens ordinary connections from
the host, so that the host needs no route, no forwarding and no NAT rule, and can reach nothing
inside. Only sockets that the daemon opens in a VPC's namespace get in: the relay's, and the
metadata server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
from pathlib import Path

from rehearsal.cgroups import Cgroup
from rehearsal.config import IAP_SOURCE, METADATA, NAMESPACE, STATE
from rehearsal.firewall import BRIDGE, SERVICES, UPLINK
from rehearsal.process import CommandFailed, run

MTU = 1460
"""Of a Google network."""
SERVICES_NAMESPACE = f"{NAMESPACE}services"
CLONE_NEWNET = 0x40000000
UPLINK_SECONDS = 10.0


async def ip(namespace: str, *commands: str) -> None:
    """Run ``ip`` commands in a namespace, all in one process."""
    await run("ip", "-n", namespace, "-batch", "-", stdin="\n".join(commands) + "\n")


async def add_namespace(name: str) -> None:
    await run("ip", "netns", "add", name)
    await ip(name, "link set lo up")


async def remove_namespace(name: str) -> None:
    if (Path("/run/netns") / name).exists():
        await run("ip", "netns", "delete", name)


async def join(
    machine: str, vpc: str, port: str, address: str, gateway: str, mac: str, *, prefix: int = 32
) -> None:
    """Give a machine's namespace its interface ``ens4`` on the bridge of another namespace."""
    await ip(vpc, f"link add {port} type veth peer name ens4 netns {machine}")
    await ip(vpc, f"link set {port} master {BRIDGE} up")
    await run("ip", "netns", "exec", vpc, "bridge", "link", "set", "dev", port, "isolated", "on")
    await ip(
        machine,
        f"link set ens4 address {mac} mtu {MTU} up",
        f"addr add {address}/{prefix} dev ens4",
        f"route replace {gateway} dev ens4",
        f"route add default via {gateway}",
    )


async def part(vpc: str, port: str) -> None:
    """Take a machine off its bridge now: the kernel takes its time to end a namespace, and the
    next machine may get the same address."""
    with contextlib.suppress(CommandFailed):  # it never joined
        await ip(vpc, f"link delete {port}")


class Vpc:
    """One network. ``number`` tells it from the others where they meet: at the database."""

    def __init__(self, number: int, cgroup: Cgroup) -> None:
        self.namespace = f"{NAMESPACE}vpc{number}"
        self._number, self._cgroup = number, cgroup
        self._uplink: asyncio.Task[None] | None = None
        self._gateways: set[str] = set()
        self._applied = ""
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        await add_namespace(self.namespace)
        await ip(
            self.namespace,
            f"link add {BRIDGE} type bridge",
            f"link set {BRIDGE} mtu {MTU} up",
            f"addr add {METADATA}/32 dev lo",
            f"addr add {IAP_SOURCE}/32 dev lo",
            # The database is reached as a peered service is: from an address of its own network.
            f"link add {SERVICES} type veth peer name vpc{self._number} netns {SERVICES_NAMESPACE}",
            f"link set {SERVICES} up",
            f"addr add 10.104.120.{16 + self._number}/24 dev {SERVICES}",
        )
        await ip(SERVICES_NAMESPACE, f"link set vpc{self._number} master {BRIDGE} up")
        switch = "net.ipv4.ip_forward=1", f"net.ipv4.conf.{BRIDGE}.send_redirects=0"
        await run("ip", "netns", "exec", self.namespace, "sysctl", "-qw", *switch)
        process = await self._open_uplink()
        self._uplink = asyncio.create_task(self._keep_uplink(process))

    async def _keep_uplink(self, process: asyncio.subprocess.Process) -> None:
        """Open the way out again whenever its process ends."""
        try:
            while True:
                await process.wait()
                process = await self._open_uplink()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _open_uplink(self) -> asyncio.subprocess.Process:
        reader, writer = os.pipe()
        log = (STATE / f"{self.namespace}.log").open("ab")
        process = await asyncio.create_subprocess_exec(
            *self._cgroup.enter(),
            *("slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback"),
            *("--cidr=100.64.0.0/24", "--netns-type=path", f"--ready-fd={writer}"),
            *(f"/run/netns/{self.namespace}", UPLINK),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
        )
        log.close()
        os.close(writer)
        try:
            ready = asyncio.to_thread(os.read, reader, 1)
            if await asyncio.wait_for(ready, UPLINK_SECONDS) != b"1":
                raise CommandFailed(f"slirp4netns did not start; see {log.name}")
            return process
        finally:
            os.close(reader)

    async def close(self) -> None:
        if self._uplink:
            self._uplink.cancel()
            await asyncio.gather(self._uplink, return_exceptions=True)
        await remove_namespace(self.namespace)

    async def apply(self, gateways: set[str], rules: str) -> None:
        """Make addresses of the router (``10.128.0.1/20``) and the ruleset these; idempotent."""
        async with self._lock:
            changes = [f"addr add {g} dev {BRIDGE}" for g in sorted(gateways - self._gateways)]
            changes += [f"addr del {g} dev {BRIDGE}" for g in sorted(self._gateways - gateways)]
            if changes:
                await ip(self.namespace, *changes)
                self._gateways = set(gateways)
            if rules != self._applied:
                await run("ip", "netns", "exec", self.namespace, "nft", "-f", "-", stdin=rules)
                self._applied = rules

    def listen(self, address: str, port: int) -> socket.socket:
        """A listening TCP socket inside the network."""
        server = socket_in(self.namespace)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(128)
        return server

    async def connect(
        self, address: str, port: int, seconds: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection from IAP's range to a machine, subject to the firewall."""
        client = socket_in(self.namespace)
        try:
            client.setblocking(False)
            client.bind((IAP_SOURCE, 0))
            loop = asyncio.get_running_loop()
            await asyncio.wait_for(loop.sock_connect(client, (address, port)), seconds)
            return await asyncio.open_connection(sock=client)
        except BaseException:
            client.close()
            raise


def socket_in(namespace: str) -> socket.socket:
    """A TCP socket that belongs to a network namespace. It stays there; the caller does not."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if libc.setns(there, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        try:
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        finally:
            if libc.setns(here, CLONE_NEWNET):
                os._exit(70)  # a daemon left in a machine's network would serve it the host
    finally:
        os.close(here)
        os.close(there)
