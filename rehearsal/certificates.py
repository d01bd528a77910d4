"""A certificate authority of the rehearsal's own, for the names it serves.

It is made fresh each time and its key never leaves the process: once the rehearsal is over, nobody
can issue another certificate that a left-over bundle would trust.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NAME: Final = "Prefect bootstrap rehearsal CA"
LIFETIME: Final = timedelta(days=30)
HOST_BUNDLE: Final = Path("/etc/ssl/certs/ca-certificates.crt")


class Authority:
    """A new authority. ``directory`` gets ``ca.crt`` and every certificate and key it issues."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = directory / "ca.crt"
        usage = _usage(key_cert_sign=True, crl_sign=True)
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        certificate = self._sign(NAME, self._key.public_key(), constraints, usage)
        _write(self.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def issue(self, hosts: list[str]) -> tuple[Path, Path]:
        """Paths of a server certificate for DNS names and IP addresses, and of its key (0600)."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(
            hosts[0][:64],
            key.public_key(),
            x509.BasicConstraints(ca=False, path_length=None),
            _usage(digital_signature=True),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
            x509.SubjectAlternativeName([_general_name(host) for host in hosts]),
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        stem = hosts[0].replace("*", "any")
        cert_path, key_path = self._directory / f"{stem}.crt", self._directory / f"{stem}.key"
        _write(cert_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        _write(key_path, pem, 0o600)
        return cert_path, key_path

    def context(self, hosts: list[str]) -> ssl.SSLContext:
        """What a server for these hosts needs; issues the certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(hosts))
        return context

    def bundle(self, path: Path) -> Path:
        """Write to ``path`` all that the host trusts, and this authority."""
        default = ssl.get_default_verify_paths().cafile
        host = HOST_BUNDLE if HOST_BUNDLE.exists() else Path(default or os.devnull)
        _write(path, host.read_bytes() + b"\n" + self.certificate.read_bytes(), 0o644)
        return path

    def _sign(
        self, name: str, key: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        issuer = self._key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(NAME))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))  # a client's clock may be behind
            .not_valid_after(now + LIFETIME)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False
            )
        )
        for extension in extensions:
            critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self._key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a new file that never had more rights than ``mode``."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
