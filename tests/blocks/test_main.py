"""``python -m blocks``, and what of this package is imported when."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_gcp.credentials import GcpCredentials
from prefect_gcp.secret_manager import GcpSecret

from blocks.__main__ import main
from blocks.target import ServerTarget, new_ssh_key
from tests.blocks.conftest import Google


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Block → what has become of it."""
    lines = capsys.readouterr().out.splitlines()
    return {block: word for word, block in map(str.split, lines)}


def test_the_blocks_are_saved_once_and_the_key_is_never_replaced(
    prefect_api: str,
    key_file: Path,
    account: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {"--target": "one", "--auth-secret": "one-auth", "--database-url-secret": "one-url"}
    arguments = [word for pair in names.items() for word in pair]
    with_file = [*arguments, "--project", "my-project-123", "--key-file", str(key_file)]
    blocks = {"gcp-credentials/one", "server-target/one", "gcpsecret/one-auth", "gcpsecret/one-url"}

    assert main(with_file) == 0
    assert said(capsys) == dict.fromkeys(blocks, "saved")
    first = ServerTarget.load("one")
    assert isinstance(first, ServerTarget)
    assert first.public_key.startswith("ssh-ed25519 ")
    assert first.credentials.project == "my-project-123"
    secret = GcpSecret.load("one-auth")
    assert isinstance(secret, GcpSecret)
    assert (secret.secret_name, secret.secret_version) == ("one-auth", "latest")

    assert main(with_file) == 0
    assert said(capsys) == dict.fromkeys(blocks, "kept")

    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file))
    assert main([*arguments, "--project", "my-project-456"]) == 0
    assert said(capsys)["gcp-credentials/one"] == "updated"
    last = ServerTarget.load("one")
    assert isinstance(last, ServerTarget)
    assert last.public_key == first.public_key
    assert last.credentials.project == "my-project-456"
    assert last.credentials.service_account_info is None


def test_a_saved_key_that_cannot_be_used_is_said_and_not_replaced(
    prefect_api: str, account: dict[str, Any], capsys: pytest.CaptureFixture[str], key_file: Path
) -> None:
    credentials = GcpCredentials(service_account_info=account)
    ServerTarget(credentials=credentials, ssh_private_key=new_ssh_key()).save("edited")
    with get_client(sync_client=True) as client:
        saved = client.read_block_document_by_name("edited", "server-target")
        update = BlockDocumentUpdate(data={"ssh_private_key": "hunter2"})
        client.update_block_document(saved.id, update)
    arguments = ["--target", "edited", "--project", "my-project-123", "--key-file", str(key_file)]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("The key saved in server-target/edited cannot be")
    with get_client(sync_client=True) as client:
        saved = client.read_block_document_by_name("edited", "server-target")
    assert saved.data["ssh_private_key"] == "hunter2"


def test_the_tunnel_that_somebody_has_chosen_is_kept(
    prefect_api: str, account: dict[str, Any], key_file: Path
) -> None:
    credentials = GcpCredentials(service_account_info=account)
    mine = ServerTarget(credentials=credentials, ssh_private_key=new_ssh_key(), tunnel="gcloud")
    mine.save("chosen")
    arguments = ["--target", "chosen", "--project", "my-project-123", "--key-file", str(key_file)]
    assert main(arguments) == 0
    again = ServerTarget.load("chosen")
    assert isinstance(again, ServerTarget)
    assert (again.tunnel, again.public_key) == ("gcloud", mine.public_key)


@pytest.mark.parametrize(("status", "word"), [(401, "401"), (200, "char 0")])
def test_a_server_that_is_closed_or_another_is_told_from_one_that_is_not_there(
    status: int,
    word: str,
    google: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Google, "status", status)
    with temporary_settings({PREFECT_API_URL: google["token_uri"]}):
        assert main(["--project", "my-project-123"]) == 1
    line = capsys.readouterr().err
    assert word in line
    assert line.endswith(
        "Check PREFECT_API_URL, which ends in /api, and PREFECT_API_AUTH_STRING.\n"
    )


NOWHERE = "http://127.0.0.1:1/api"


@pytest.mark.parametrize(
    ("url", "arguments", "line"),
    [
        (None, [], "There is no Prefect API. Start prefect server start, and set PREFECT_API_URL"),
        (NOWHERE, [], f"The Prefect API at {NOWHERE} does not answer"),
        ("", ["--project", ""], "There is no project. Pass --project, or set GOOGLE_CLOUD_PROJECT"),
        ("", ["--key-file", "nowhere.json"], "nowhere.json: No such file"),
        ("", ["--key-file", "empty.json"], "empty.json is not a service account's key"),
        ("", ["--key-file", "half.json"], "half.json is not a service account's key"),
        ("", [], "There are no Application Default Credentials"),
    ],
)
def test_what_is_missing_is_one_line_on_stderr(
    url: str | None,
    arguments: list[str],
    line: str,
    prefect_api: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "empty.json").touch()
    (tmp_path / "half.json").write_text('{"type": "service_account", "private_key": "hunter2"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "nowhere.json")
    api = prefect_api if url == "" else url
    with temporary_settings({PREFECT_API_URL: api}):
        assert main(["--project", "my-project-123", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1
    assert "hunter2" not in captured.err + captured.out


def run(api: str, home: Path, *command: str) -> str:
    """What a command says on stdout, in a process of its own, away from the repository."""
    environment = os.environ | {"PREFECT_API_URL": api, "PREFECT_HOME": str(home)}
    return subprocess.check_output(
        [sys.executable, *command], env=environment, cwd=home, text=True, timeout=60
    )


def test_prefect_block_register_finds_the_block_type(prefect_api: str, tmp_path: Path) -> None:
    table = run(prefect_api, tmp_path, "-m", "prefect", "block", "register", "-m", "blocks")
    assert "Server Target" in table
    with get_client(sync_client=True) as client:
        assert client.read_block_type_by_slug("server-target").name == "Server Target"


@pytest.mark.parametrize(
    ("module", "absent"),
    [("blocks.secrets", "prefect_gcp"), ("blocks.shell", "prefect_gcp"), ("blocks.iap", "prefect")],
)
def test_a_module_does_without_what_is_slow_or_not_on_the_server(
    module: str, absent: str, tmp_path: Path
) -> None:
    code = f"import sys; sys.modules[{absent!r}] = None; import {module}"
    assert run("", tmp_path, "-c", code) == ""
