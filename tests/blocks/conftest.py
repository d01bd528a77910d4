"""A Prefect server, a service account's key that opens nothing, and who takes it nevertheless."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.prefect_server import prefect_api

__all__ = ["prefect_api"]


@pytest.fixture(scope="session")
def account() -> dict[str, Any]:
    """The content of a key file; port 1 of this machine is where its tokens would come from."""
    key = generate_private_key(public_exponent=65537, key_size=2048)
    return {
        "type": "service_account",
        "project_id": "my-project-123",
        "private_key_id": "0",
        "private_key": key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ).decode(),
        "client_email": "prefect-vm@my-project-123.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "http://127.0.0.1:1/token",
    }


@pytest.fixture
def key_file(account: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(account))
    return path


class Google(BaseHTTPRequestHandler):
    """Gives out numbered tokens, each for ``seconds``, or says no with ``status``; no Prefect API."""

    status, seconds, given = 200, 3600, 0

    def do_POST(self) -> None:
        Google.given += 1
        token = {"access_token": f"token-{self.given}", "expires_in": self.seconds}
        answer = token if self.status == 200 else {"error": "invalid_grant"}
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Nothing on stderr."""


@pytest.fixture
def google(account: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """An account whose tokens come from ``Google``, which starts anew."""
    for name, value in {"status": 200, "seconds": 3600, "given": 0}.items():
        monkeypatch.setattr(Google, name, value)
    with HTTPServer(("127.0.0.1", 0), Google) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield account | {"token_uri": f"http://127.0.0.1:{server.server_port}/token"}
        server.shutdown()
        thread.join()
