"""The two secrets: read from either kind of block, judged, and never shown."""

from collections.abc import Callable
from typing import Any

import pytest
from google.api_core import exceptions as api
from google.auth.exceptions import RefreshError, TransportError
from google.cloud.secretmanager import AccessSecretVersionResponse
from prefect import flow
from prefect.blocks.system import Secret
from prefect_gcp.credentials import GcpCredentials
from prefect_gcp.secret_manager import GcpSecret

from blocks.secrets import HIDDEN, Secrets, read_secrets
from flows.errors import Final, Unreachable
from flows.spec import SecretRef, ServerSpec

AUTH = "admin:correct-horse-battery"
URL = "postgresql+asyncpg://prefect:pa%40ss%2Fword@10.0.0.3:5432/prefect?ssl=require"


def spec(kind: str, auth: str = "auth", url: str = "url") -> ServerSpec:
    return ServerSpec(
        name="prefect-1",
        project="my-project-123",
        zone="europe-west4-a",
        auth_secret=SecretRef.model_validate({"kind": kind, "block": auth}),
        database_url_secret=SecretRef.model_validate({"kind": kind, "block": url}),
    )


class SecretManager:
    """Google's client on paper: what is in it are the values, or the errors, of its secrets."""

    def __init__(self, secrets: dict[str, bytes | Exception]) -> None:
        self.secrets = secrets

    def access_secret_version(self, request: Any) -> AccessSecretVersionResponse:
        value = self.secrets[request.name.split("/")[3]]
        if isinstance(value, Exception):
            raise value
        return AccessSecretVersionResponse(payload={"data": value})


@pytest.fixture(scope="module")
def blocks(prefect_api: str, account: dict[str, Any]) -> None:
    """Both secrets in a Secret block each, and two GcpSecret blocks of their names."""
    credentials = GcpCredentials(service_account_info=account)
    for name, value in {"auth": AUTH, "url": URL}.items():
        GcpSecret(gcp_credentials=credentials, secret_name=name).save(name)
        Secret(value=value).save(name)
    Secret(value={"user": "admin"}).save("json")


@pytest.fixture
def google(blocks: None, monkeypatch: pytest.MonkeyPatch) -> SecretManager:
    """Secret Manager, with both secrets."""
    manager = SecretManager({"auth": AUTH.encode(), "url": URL.encode()})
    monkeypatch.setattr(GcpCredentials, "get_secret_manager_client", lambda _: manager)
    return manager


@pytest.mark.parametrize("kind", ["gcp-secret", "prefect-secret"])
@pytest.mark.parametrize("read", [read_secrets, flow(read_secrets)])
def test_both_kinds_are_read_outside_and_inside_a_flow(
    kind: str, read: Any, google: SecretManager
) -> None:
    assert read(spec(kind)) == Secrets(AUTH, URL)


@pytest.mark.parametrize("kind", ["gcp-secret", "prefect-secret"])
def test_a_block_that_does_not_exist_is_named_with_the_step_that_makes_it(
    kind: str, prefect_api: str
) -> None:
    with pytest.raises(Final, match=r"There is no .* block nowhere\. Make it") as caught:
        read_secrets(spec(kind, auth="nowhere"))
    assert caught.value.repair


@pytest.mark.parametrize(
    ("kind", "raised", "repair"),
    [
        (api.NotFound, Final, "gcloud secrets create"),
        (api.PermissionDenied, Final, "roles/secretmanager.secretAccessor"),
        (api.FailedPrecondition, Final, "gcloud secrets versions add"),
        (api.Unauthenticated, Final, "--key-file"),
        (RefreshError, Final, "--key-file"),
        (api.InvalidArgument, Final, "fields"),
        (api.ServiceUnavailable, Unreachable, "secretmanager.googleapis.com"),
        (api.ResourceExhausted, Unreachable, "secretmanager.googleapis.com"),
        (api.RetryError, Unreachable, "secretmanager.googleapis.com"),
        (TransportError, Unreachable, "secretmanager.googleapis.com"),
    ],
)
def test_the_kind_of_failure_decides_the_error_and_its_repair(
    kind: Callable[..., Exception],
    raised: type[Final | Unreachable],
    repair: str,
    google: SecretManager,
) -> None:
    google.secrets["auth"] = kind("why", ())
    with pytest.raises(raised, match="GcpSecret block auth") as caught:
        read_secrets(spec("gcp-secret"))
    assert repair in caught.value.repair


@pytest.mark.parametrize("value", [f"{AUTH}\n".encode(), AUTH.encode() + b"\xff", b"", b"short:er"])
def test_a_secret_that_cannot_work_is_refused_without_showing_it(
    value: bytes, google: SecretManager
) -> None:
    google.secrets["auth"] = value
    with pytest.raises(Final, match="gcp-secret block auth: the auth string") as caught:
        read_secrets(spec("gcp-secret"))
    assert "gcloud secrets versions add auth" in caught.value.repair
    assert "horse" not in str(caught.value)
    assert "short" not in str(caught.value).replace("shorter", "")
    assert caught.value.__suppress_context__


def test_a_secret_block_that_holds_no_text_is_refused(blocks: None) -> None:
    with pytest.raises(Final, match="prefect-secret block json") as caught:
        read_secrets(spec("prefect-secret", auth="json"))
    assert caught.value.repair == "Edit the Secret block json in the UI."


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"auth_string = {AUTH!r}", f"auth_string = '{HIDDEN}'"),
        ("password correct-horse-battery", f"password {HIDDEN}"),
        (f"connecting to {URL}", f"connecting to {HIDDEN}"),
        ("encoded pa%40ss%2Fword", f"encoded {HIDDEN}"),
        ("decoded pa@ss/word, and again pa@ss/word", f"decoded {HIDDEN}, and again {HIDDEN}"),
        ("user prefect of 10.0.0.3", "user prefect of 10.0.0.3"),
    ],
)
def test_redact_hides_the_secrets_and_their_passwords_only(text: str, redacted: str) -> None:
    assert Secrets(AUTH, URL).redact(text) == redacted


def test_redact_leaves_parts_that_are_too_short_to_be_told_from_words() -> None:
    secrets = Secrets("administrator:abc", "postgresql+asyncpg://prefect:xyz@db/prefect")
    assert secrets.redact("abc xyz administrator:abc") == f"abc xyz {HIDDEN}"


def test_repr_shows_no_secret() -> None:
    assert repr(Secrets(AUTH, URL)) == "Secrets()"
