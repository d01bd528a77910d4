"""ServerTarget: its key, its clients, and Prefect's own suite for blocks."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives import serialization as ssh
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.oauth2.service_account import Credentials
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from prefect_gcp.credentials import GcpCredentials
from pydantic import SecretStr, ValidationError

from blocks.compute import Run
from blocks.target import ServerTarget, new_ssh_key
from flows.errors import Final, Unreachable
from tests.blocks.conftest import Google

KEY = new_ssh_key().get_secret_value()
PKCS8 = (
    Ed25519PrivateKey.generate()
    .private_bytes(ssh.Encoding.PEM, ssh.PrivateFormat.PKCS8, ssh.NoEncryption())
    .decode()
)


@pytest.mark.parametrize("block", [ServerTarget])
class TestStandards(BlockStandardTestSuite):
    """Prefect's own suite."""

    @pytest.fixture
    def block(self, request: pytest.FixtureRequest) -> type[Block]:
        kind: type[Block] = request.param
        return kind

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """The suite downloads it; ours is the one that prefect-gcp has for its blocks."""
        assert str(block._logo_url) == GcpCredentials._logo_url


@pytest.fixture
def target(account: dict[str, Any]) -> ServerTarget:
    credentials = GcpCredentials(service_account_info=account)
    return ServerTarget(credentials=credentials, ssh_private_key=SecretStr(KEY))


def test_the_public_key_is_the_one_that_openssh_derives(
    target: ServerTarget, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text(target.ssh_private_key.get_secret_value())
    file.chmod(0o600)
    told = subprocess.check_output(["ssh-keygen", "-y", "-f", file], text=True, timeout=20)
    assert target.public_key == told.strip()
    assert target.public_key.startswith("ssh-ed25519 AAAA")


@pytest.mark.parametrize(
    "pasted", [KEY.strip(), KEY.replace("\n", ""), KEY.replace("\n", "\r\n"), f"\n {KEY}\n"]
)
def test_a_key_whose_line_breaks_a_form_has_changed_is_as_ssh_wants_it(
    pasted: str, target: ServerTarget
) -> None:
    again = ServerTarget(credentials=target.credentials, ssh_private_key=SecretStr(pasted))
    assert again.ssh_private_key.get_secret_value() == KEY


@pytest.mark.parametrize(
    "key",
    [
        PKCS8,
        KEY[:200],
        KEY.replace("AAAA", "AA!A", 1),
        "hunter2",
        "",
    ],
    ids=["not OpenSSH's format", "cut off", "damaged", "a password", "empty"],
)
def test_another_key_is_refused_with_what_to_write_and_without_showing_it(
    key: str, account: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match=r"ssh-keygen -t ed25519 -N '' -f key") as caught:
        ServerTarget.model_validate(
            {"credentials": {"service_account_info": account}, "ssh_private_key": key}
        )
    assert "input_value" not in str(caught.value)


def test_a_key_with_a_passphrase_is_refused(account: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "key"
    make: list[str | Path] = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "passphrase", "-f", file]
    subprocess.run(make, check=True, timeout=20)
    with pytest.raises(ValidationError, match="without a passphrase"):
        ServerTarget.model_validate(
            {
                "credentials": {"service_account_info": account},
                "ssh_private_key": file.read_text(),
            }
        )


def test_a_client_of_the_compute_api_is_for_the_project_and_the_run(target: ServerTarget) -> None:
    run = Run(uuid4())
    compute = target.compute("my-project-123", run)
    assert (compute.project, compute.run) == ("my-project-123", run)
    asked = compute.service.instances().list(project=compute.project, zone="europe-west4-a")
    assert "/projects/my-project-123/zones/europe-west4-a/instances" in asked.uri


def of(account: dict[str, Any]) -> ServerTarget:
    credentials = GcpCredentials(service_account_info=account)
    return ServerTarget(credentials=credentials, ssh_private_key=SecretStr(KEY))


@pytest.mark.parametrize(("seconds", "second"), [(3600, "token-1"), (60, "token-2")])
def test_a_token_is_used_until_it_is_about_to_expire(
    seconds: int, second: str, google: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Google, "seconds", seconds)
    target = of(google)
    assert [target.token(), target.token()] == ["token-1", second]


def test_clients_of_many_threads_ask_for_one_token(google: dict[str, Any]) -> None:
    target = of(google)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: target.compute("my-project-123", Run(uuid4())), range(4)))
    assert target.account().token == "token-1"
    assert Google.given == 1


def test_a_client_of_an_account_without_a_token_says_so_when_it_asks(
    google: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Google, "status", 400)
    assert of(google).compute("my-project-123", Run(uuid4())).project == "my-project-123"


def test_default_credentials_from_a_key_file_get_the_scope_they_lack(
    google: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = of(google)
    bare = Credentials.from_service_account_info(google)  # type: ignore[no-untyped-call]
    monkeypatch.setattr(GcpCredentials, "get_credentials_from_service_account", lambda _: bare)
    assert target.token() == "token-1"
    assert getattr(target._account, "scopes", None) == [
        "https://www.googleapis.com/auth/cloud-platform"
    ]


def test_a_refused_account_is_final(
    google: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Google, "status", 400)
    with pytest.raises(Final, match="--key-file"):
        of(google).token()


def test_no_answer_is_worth_another_try(target: ServerTarget) -> None:
    with pytest.raises(Unreachable, match="reaches"):
        target.token()
