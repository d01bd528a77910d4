"""Who calls and what they may do."""

import base64
import json
import time
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from rehearsal.errors import ApiError, Json
from rehearsal.iam import TOKEN_SECONDS, Identities, permissions

EMAIL, OTHER = "me@p.iam.gserviceaccount.com", "other@p.iam.gserviceaccount.com"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
POLICY = "compute.networks.updatePolicy"


@pytest.mark.parametrize(
    ("method", "needed"),
    [
        ("compute.instances.insert", {"compute.instances.create", "compute.disks.create",
                                      "compute.subnetworks.use"}),
        ("compute.instances.get", {"compute.instances.get"}),
        ("compute.instances.list", {"compute.instances.list"}),
        ("compute.instances.aggregatedList", {"compute.instances.list"}),
        ("compute.instances.delete", {"compute.instances.delete"}),
        ("compute.instances.start", {"compute.instances.start"}),
        ("compute.instances.stop", {"compute.instances.stop"}),
        ("compute.instances.setMetadata", {"compute.instances.setMetadata"}),
        ("compute.instances.setDeletionProtection", {"compute.instances.setDeletionProtection"}),
        ("compute.instances.updateShieldedInstanceConfig",
         {"compute.instances.updateShieldedInstanceConfig"}),
        ("compute.instances.getGuestAttributes", {"compute.instances.getGuestAttributes"}),
        ("compute.instances.getSerialPortOutput", {"compute.instances.getSerialPortOutput"}),
        ("compute.instances.attachDisk", {"compute.instances.attachDisk", "compute.disks.use"}),
        ("compute.instances.testIamPermissions", set()),
        ("compute.networks.insert", {"compute.networks.create"}),
        ("compute.networks.patch", {"compute.networks.update"}),
        ("compute.subnetworks.insert", {"compute.subnetworks.create", POLICY}),
        ("compute.subnetworks.setPrivateIpGoogleAccess",
         {"compute.subnetworks.setPrivateIpGoogleAccess"}),
        ("compute.firewalls.insert", {"compute.firewalls.create", POLICY}),
        ("compute.firewalls.patch", {"compute.firewalls.update", POLICY}),
        ("compute.firewalls.update", {"compute.firewalls.update", POLICY}),
        ("compute.firewalls.delete", {"compute.firewalls.delete", POLICY}),
        ("compute.routers.patch", {"compute.routers.update"}),
        ("compute.disks.createSnapshot",
         {"compute.disks.createSnapshot", "compute.snapshots.create"}),
        ("compute.images.getFromFamily", {"compute.images.getFromFamily"}),
        ("compute.zoneOperations.wait", {"compute.zoneOperations.get"}),
        ("compute.globalOperations.get", {"compute.globalOperations.get"}),
        ("secretmanager.projects.secrets.create", {"secretmanager.secrets.create"}),
        ("secretmanager.projects.secrets.addVersion", {"secretmanager.versions.add"}),
        ("secretmanager.projects.secrets.versions.access", {"secretmanager.versions.access"}),
        ("secretmanager.projects.secrets.patch", {"secretmanager.secrets.update"}),
        ("cloudresourcemanager.projects.get", {"resourcemanager.projects.get"}),
        ("cloudresourcemanager.projects.testIamPermissions", set()),
        ("iam.projects.serviceAccounts.create", {"iam.serviceAccounts.create"}),
        ("serviceusage.services.enable", {"serviceusage.services.enable"}),
        ("iamcredentials.projects.serviceAccounts.getAllowedLocations", set()),
    ],
)  # fmt: skip
def test_a_method_needs(method: str, needed: set[str]) -> None:
    assert set(permissions(method)) == needed


@pytest.fixture(scope="module")
def keyed() -> tuple[Identities, Json, Json]:
    """Identities with two accounts, and their key files."""
    identities = Identities("p")
    return identities, identities.create_key(EMAIL), identities.create_key(OTHER)


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def signed(key: Json, **claims: object) -> str:
    """A JWT as Google's clients sign it."""
    private = serialization.load_pem_private_key(key["private_key"].encode(), None)
    assert isinstance(private, rsa.RSAPrivateKey)
    given = {"iss": key["client_email"], "exp": time.time() + 600, **claims}
    text = f"{encoded({'alg': 'RS256'})}.{encoded(given)}"
    signature = private.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def forged(jwt: str, **claims: object) -> str:
    """The same signature under other claims."""
    head, payload, signature = jwt.split(".")
    old = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return f"{head}.{encoded({**old, **claims})}.{signature}"


def test_a_key_file_is_what_googles_clients_read(keyed: tuple[Identities, Json, Json]) -> None:
    key = keyed[1]
    assert (key["type"], key["client_email"], key["project_id"]) == ("service_account", EMAIL, "p")
    assert key["token_uri"] == "https://oauth2.googleapis.com/token"
    assert key["private_key_id"] != keyed[2]["private_key_id"]


def test_a_signed_jwt_is_its_account(keyed: tuple[Identities, Json, Json]) -> None:
    identities, mine, other = keyed
    assert identities.caller(f"Bearer {signed(mine)}") == EMAIL
    assert identities.caller(f"bearer {signed(other)}") == OTHER
    form = {"grant_type": GRANT, "assertion": signed(mine)}
    token = identities.exchange(form)
    assert token["expires_in"] == TOKEN_SECONDS
    assert identities.caller(f"Bearer {token['access_token']}") == EMAIL


@pytest.mark.parametrize(
    "proof",
    [
        lambda mine, other: forged(signed(mine), iss=OTHER),
        lambda mine, other: forged(signed(mine), exp=time.time() + 9999),
        lambda mine, other: signed({**mine, "client_email": OTHER}),
        lambda mine, other: signed(mine, exp=time.time() - 1),
        lambda mine, other: signed(mine, exp="never"),
        lambda mine, other: signed(mine, exp=None),
        lambda mine, other: signed(mine, iss="nobody"),
        lambda mine, other: signed(mine, iss=["x"]),
        lambda mine, other: signed(mine)[:-8],
        lambda mine, other: signed(mine).rpartition(".")[0] + ".",
        lambda mine, other: f"{encoded({'alg': 'none'})}.{encoded({'iss': EMAIL})}.",
        lambda mine, other: f"{encoded({})}.{encoded(['x'])}.AAAA",
        lambda mine, other: "a.b.c",
        lambda mine, other: "é.é.é",
        lambda mine, other: "",
    ],
)
def test_what_proves_nothing_is_nobody(
    keyed: tuple[Identities, Json, Json], proof: Callable[[Json, Json], str]
) -> None:
    identities, mine, other = keyed
    jwt = proof(mine, other)
    assert identities.caller(f"Bearer {jwt}") is None
    with pytest.raises(ApiError) as caught:
        identities.exchange({"grant_type": GRANT, "assertion": jwt})
    assert (caught.value.code, caught.value.reason) == (400, "invalid_grant")


def test_another_kind_of_grant_is_refused(keyed: tuple[Identities, Json, Json]) -> None:
    for form in ({}, {"grant_type": "password"}, {"grant_type": GRANT}):
        with pytest.raises(ApiError):
            keyed[0].exchange(form)


def test_a_token_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    identities = Identities("p")
    bearer = f"Bearer {identities.token(EMAIL)['access_token']}"
    assert identities.caller(bearer) == EMAIL
    assert Identities("p").caller(bearer) is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + TOKEN_SECONDS + 1)
    assert identities.caller(bearer) is None


def test_an_account_may_do_what_it_was_granted() -> None:
    identities = Identities("p")
    assert not identities.may(EMAIL, "a.b.c")
    identities.grant(EMAIL, ["a.b.c"])
    assert identities.may(EMAIL, "a.b.c")
    assert not identities.may(EMAIL, "a.b.d")
    assert not identities.may(OTHER, "a.b.c")
    identities.grant(EMAIL, None)
    assert identities.may(EMAIL, "a.b.d")
    identities.grant(EMAIL, [])
    assert not identities.may(EMAIL, "a.b.c")


def test_a_new_key_takes_nothing_back() -> None:
    identities = Identities("p")
    identities.grant(EMAIL, ["a.b.c"])
    identities.create_key(EMAIL)
    assert not identities.may(EMAIL, "a.b.d")
    identities.create_key(OTHER)
    assert identities.may(OTHER, "a.b.d")
