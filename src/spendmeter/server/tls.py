"""TLS by a certificate and a key in PEM files."""

from __future__ import annotations

import ssl
from pathlib import Path

from spendmeter.errors import ConfigError


def context(cert: Path, key: Path) -> ssl.SSLContext:
    """For a server: TLS 1.2 or later.

    Raises:
        ConfigError: a file cannot be read or is not PEM, the key is encrypted, or it is not that of the certificate.
    """
    for flag, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            path.open("rb").close()
        except OSError as e:
            raise ConfigError(f"{flag} {path}: cannot be read ({e.strerror}); correct the path or its permissions") from None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2

    def encrypted() -> str:  # is asked for a passphrase, where OpenSSL would ask the terminal
        raise ConfigError(f"--tls-key {key}: the key is encrypted; store it without a passphrase, readable by this user alone")

    try:
        made.load_cert_chain(cert, key, password=encrypted)
    except ssl.SSLError as e:
        raise ConfigError(f"--tls-cert {cert}, --tls-key {key}: {_why(e)}") from None
    return made


def _why(e: ssl.SSLError) -> str:
    if e.reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate; give the two that were made together"
    return "not a certificate and a private key in PEM; the certificate's file holds the chain, its own certificate first"
