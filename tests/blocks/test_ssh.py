"""SSH to an instance: the real ssh, through our tunnel and a relay, to an sshd on the loopback."""

from __future__ import annotations

import hashlib
import random
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from blocks import ssh
from blocks.iap import IapTarget
from blocks.shell import Command
from blocks.unreached import (
    Closed,
    HostKeyMismatch,
    KeyRefused,
    NoAnswer,
    NoGcloud,
    NotBooted,
    NotPermitted,
    NotThere,
)
from flows.errors import BootstrapError
from tests.blocks.ssh_server import HERE, Host
from tests.conftest import ROOT
from tests.loopback import untrusted

FORTY = (40 << 20) + 7
OURS = asyncssh.generate_private_key("ssh-ed25519")
KEY = OURS.export_private_key().decode()
PUBLIC = " ".join(OURS.export_public_key().decode().split()[:2])


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the network we are in, and less patience."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(ssh, "SETTLES", 0.0)


@pytest.fixture
def host() -> Iterator[Host]:
    with Host({PUBLIC}).up() as it:
        yield it


def test_commands_run_and_ports_are_forwarded_over_one_connection(host: Host) -> None:
    with host.shell(KEY) as shell:
        told = shell.run([Command(("echo", "a 'b' $c")), Command(("cat",), stdin="ä\n")])
        assert [result.stdout for result in told] == ["a 'b' $c\n", "ä\n"]
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(10)
            with shell.forward(server.getsockname()[1]) as local:
                near = socket.create_connection(("127.0.0.1", local), 5)
                far, _ = server.accept()
                far.sendall(b"through")
                assert near.recv(7) == b"through"
                near.close()
                far.close()
    assert host.tried == ["bootstrap"]


CAUSES: dict[str, tuple[dict[str, Any], type[BootstrapError], str]] = {
    "no host keys": ({"host_keys": list}, NotBooted, "still boots"),
    "stopped": (
        {"host_keys": list, "status": lambda: "TERMINATED"},
        NotBooted,
        "it is TERMINATED. Run bootstrap-server, which starts it.",
    ),
    "firewall": ({"target": IapTarget("p", "z", "vm", 9)}, Closed, r"\[4003\]"),
    "stopped after a boot": (
        {"target": IapTarget("p", "z", "vm", 9), "status": lambda: "STOPPING"},
        NotBooted,
        "STOPPING",
    ),
    "permission": ({"target": IapTarget("p", "z", "vm", 33)}, NotPermitted, r"\[4033\]"),
    "token": ({"token": lambda: "bad"}, NotPermitted, r"\[401\]"),
    "other name": ({"target": IapTarget("p", "z", "vm", 47)}, NotThere, r"\[4047\]"),
}


@pytest.mark.parametrize(("other", "kind", "said"), CAUSES.values(), ids=list(CAUSES))
def test_each_cause_has_its_own_type_and_repair(
    other: dict[str, Any], kind: type[BootstrapError], said: str, host: Host
) -> None:
    with pytest.raises(kind, match=said) as caught, host.shell(KEY, **other):
        pass
    assert type(caught.value) is kind
    assert caught.value.repair
    assert host.tried == []


def test_a_key_that_sshd_does_not_know_is_told_from_one_that_comes_late(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.keys.clear()
    with (
        pytest.raises(KeyRefused, match=r"does not let bootstrap in .* its metadata"),
        host.shell(KEY),
    ):
        pass
    monkeypatch.setattr("time.sleep", lambda _: host.keys.add(PUBLIC))  # the guest agent, meanwhile
    with host.shell(KEY, patience=20) as shell:
        assert shell.run([Command(("true",))])[0].code == 0


def test_another_host_key_is_refused_before_anything_is_sent(host: Host) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    with (
        pytest.raises(HostKeyMismatch, match="not published") as caught,
        host.shell(KEY, host_keys=lambda: [other], patience=60),
    ):
        pass
    assert host.host_key.get_fingerprint() in str(caught.value)
    assert host.tried == []


def test_host_keys_that_a_first_boot_exchanges_are_waited_for_a_moment(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "SETTLES", 20.0)
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    told = iter([[other], host.published])
    with host.shell(KEY, host_keys=lambda: next(told), patience=60):
        assert host.tried == ["bootstrap"]


def test_what_hangs_up_before_its_host_key_is_no_sshd(host: Host) -> None:
    host.silent = True
    with pytest.raises(NoAnswer, match="vm does not answer"), host.shell(KEY):
        pass


def test_a_file_of_40_mb_survives_five_cuts(host: Host, tmp_path: Path) -> None:
    """And what comes after it in the same round trip gets its own."""
    file, small = tmp_path / "file", tmp_path / "small"
    file.write_bytes(random.Random(1).randbytes(FORTY))  # noqa: S311 - not a secret
    small.write_bytes(b"\xff\n{")
    host.cuts = [1 << 16, 4_000_000, 4_100_000, 20_000_000, 38_000_000]
    with host.shell(KEY) as shell:
        big, after = shell.run(
            [
                Command(("sha256sum",), seconds=60, file=file),
                Command(("od", "-An", "-tx1"), file=small),
            ]
        )
    assert big.stdout.split()[0] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert after.stdout.split() == ["ff", "0a", "7b"]
    assert host.cuts == []
    assert host.requests == 6


# gcloud's tunnel

GCLOUD = """\
#!/bin/sh
echo "$*" >> "$0.asked"
env >> "$0.env"
IAP_TUNNEL_TOKEN_FILE={token} exec {python} -c {here} {url} p z vm "$4"
"""


def install(host: Host, folder: Path, text: str) -> Path:
    """A gcloud on PATH."""
    (folder / "token").write_text("good")
    program = folder / "gcloud"
    words = {"token": folder / "token", "python": sys.executable, "url": host.url}
    program.write_text(text.format(**words, here=shlex.quote(HERE)))
    program.chmod(0o755)
    return program


def test_the_tunnel_of_gcloud_gets_names_and_no_secret(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = install(host, tmp_path, GCLOUD)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(ROOT)  # where the stand-in finds our tunnel

    def token() -> str:
        raise AssertionError("gcloud has its own login")

    with host.shell(KEY, tunnel="gcloud", token=token) as shell:
        assert shell.run([Command(("echo", "here"))])[0].stdout == "here\n"
    assert Path(f"{program}.asked").read_text() == (
        "compute start-iap-tunnel vm 22 --listen-on-stdin --project=p --zone=z --verbosity=warning\n"
    )
    assert "IAP_TUNNEL_TOKEN_FILE" not in Path(f"{program}.env").read_text()


def test_without_gcloud_its_tunnel_says_what_to_install(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ssh").symlink_to("/usr/bin/ssh")
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(NoGcloud, match="Install the Google Cloud CLI"),
        host.shell(KEY, tunnel="gcloud"),
    ):
        pass


@pytest.mark.gcloud
@pytest.mark.parametrize(("port", "kind"), [(22, None), (9, Closed), (33, NotPermitted)])
def test_gcloud_itself_is_understood(
    port: int,
    kind: type[BootstrapError] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Google's own, told where the relay is."""
    with Host({PUBLIC}, tls=untrusted(tmp_path)).up() as host:
        more = (
            "--iap-tunnel-url-override={url}/v4 --iap-tunnel-insecure-disable-websocket-cert-check"
        )
        install(host, tmp_path, f'#!/bin/sh\nexec /usr/bin/gcloud "$@" {more}\n')
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setenv("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "config"))
        shell = host.shell(KEY, tunnel="gcloud", target=IapTarget("p", "z", "vm", port))
        if kind is None:
            with shell:
                assert shell.run([Command(("echo", "here"))])[0].stdout == "here\n"
            return
        with pytest.raises(kind) as caught, shell:
            pass
        assert caught.value.repair
