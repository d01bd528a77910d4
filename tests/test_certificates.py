"""The local authority, as the programs see it that have to accept its certificates."""

import os
import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from rehearsal.certificates import HOST_BUNDLE, NAME, Authority

HOSTS = ["localhost", "secretmanager.googleapis.com", "127.0.0.1", "10.104.120.4", "::1"]


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    """A TLS handshake in memory; ``SSLError`` as a client of ``host`` would get it."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=host),
        server.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[0].getpeercert()


def strict(cafile: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(cafile))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


@pytest.mark.parametrize("host", HOSTS)
def test_a_strict_client_accepts_every_host(tmp_path: Path, host: str) -> None:
    authority = Authority(tmp_path)
    handshake(authority.context(HOSTS), strict(authority.certificate), host)


def test_a_client_refuses_other_hosts_and_other_authorities(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    server = authority.context(HOSTS)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, strict(authority.certificate), "compute.googleapis.com")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, strict(other.certificate), "localhost")


def test_openssl_verifies_the_chain(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, _ = authority.issue(HOSTS)
    flags = ["-x509_strict", "-purpose", "sslserver", "-verify_hostname", "localhost"]
    done = subprocess.run(
        ["openssl", "verify", *flags, "-CAfile", authority.certificate, certificate],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{certificate}: OK\n"), done.stderr


def test_a_server_certificate_cannot_sign_others(tmp_path: Path) -> None:
    certificate, _ = Authority(tmp_path).issue(HOSTS)
    extensions = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_only_the_owner_reads_keys_and_the_authoritys_own_is_nowhere(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        _, key = Authority(tmp_path).issue(HOSTS)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    private = [p.name for p in tmp_path.iterdir() if b"PRIVATE KEY" in p.read_bytes()]
    assert private == [key.name]


def test_a_second_certificate_replaces_the_first(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    first = authority.issue(["localhost"])[0].read_bytes()
    certificate, key = authority.issue(["localhost"])
    assert certificate.read_bytes() != first
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)  # they fit together


def test_an_authority_lives_30_days_and_says_whose_it_is(tmp_path: Path) -> None:
    pem = Authority(tmp_path).certificate.read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=29) < left <= timedelta(days=30)
    assert certificate.subject.rfc4514_string() == f"CN={NAME}"


def test_the_bundle_trusts_what_the_host_trusts_and_us(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    bundle = authority.bundle(tmp_path / "bundle.crt")
    handshake(authority.context(HOSTS), strict(bundle), "localhost")
    if HOST_BUNDLE.exists():
        host = ssl.create_default_context(cafile=str(HOST_BUNDLE)).get_ca_certs(binary_form=True)
        ours = ssl.create_default_context(cafile=str(bundle)).get_ca_certs(binary_form=True)
        assert len(ours) == len(host) + 1
        assert set(host) < set(ours)
