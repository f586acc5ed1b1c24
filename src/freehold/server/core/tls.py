"""A certificate and its key, checked by a handshake in memory before the server listens.

Knows two files and what OpenSSL says of them; opens no socket. uvicorn reads the files again.
Path: cli/serve -> checked -> Tls -> serve.Settings -> uvicorn
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from freehold.errors import UsageError
from freehold.regular import read_regular

MOST_BYTES = 1 << 20  # of a file: a bundle of all public authorities has 220,000
_MAKE = "one for a try: openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -keyout KEY -out CERT"


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate and its key. `names`: the certificate's host names."""

    cert: Path
    key: Path
    names: tuple[str, ...] = ()
    ends_at: float = 0.0  # seconds since 1970

    @property
    def days_left(self) -> float:
        """Days until the certificate expires."""
        return (self.ends_at - time.time()) / 86400


def checked(cert: Path | None, key: Path | None) -> Tls | None:
    """Return the pair, None for neither. Raises UsageError for what no client could speak to."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        missing = "--tls-key" if key is None else "--tls-cert"
        raise UsageError(f"{missing} is missing: TLS takes a certificate and its key", _MAKE)
    cert, key = cert.expanduser(), key.expanduser()
    for path in (cert, key):
        try:
            read_regular(path, MOST_BYTES)
        except OSError as e:
            raise UsageError(f"{path} cannot be read: {e.strerror}", _MAKE) from e
    if key.stat().st_mode & 0o077:
        raise UsageError(f"others may read the private key {key}", f"chmod 600 {key}")
    return _shaken(_context(cert, key), cert, key)


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def ask() -> str:
        raise UsageError(
            f"the private key {key} has a password, and the server cannot enter it",
            f"openssl pkey -in {key} -out PLAIN writes one without",
        )

    try:
        context.load_cert_chain(cert, key, ask)
    except ssl.SSLError as e:
        if e.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(f"{key} is not the key of the certificate {cert}") from e
        raise UsageError(
            f"{cert} and {key} are not a certificate and key in PEM: {e.reason or e}", _MAKE
        ) from e
    return context


def _shaken(server: ssl.SSLContext, cert: Path, key: Path) -> Tls:
    """Let a client that trusts this very certificate speak to it; nothing leaves memory."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an authority's certificate need not be in the file
    client.load_verify_locations(cert)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(up, down, server_side=True)
    theirs = client.wrap_bio(down, up)
    try:
        for side in (theirs, ours, theirs, ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except ssl.SSLCertVerificationError as e:
        raise UsageError(f"no client would accept {cert}: {e.verify_message}", _MAKE) from e
    except ssl.SSLError as e:
        raise UsageError(f"no client could speak to {cert}: {e.reason or e}", _MAKE) from e
    certificate = theirs.getpeercert() or {}
    alternatives: list[str] = [str(value) for _, value in certificate.get("subjectAltName", ())]  # type: ignore[misc]
    ends = certificate.get("notAfter")
    return Tls(cert, key, tuple(alternatives), ssl.cert_time_to_seconds(str(ends)) if ends else 0.0)
