"""Whom to trust and who we are: the certificates of the configuration, read and checked once for both protocols."""

from __future__ import annotations

import ssl
from pathlib import Path

from pipeline import StartError
from plugins.exporters.otlp.config import OtlpConfig


def client_context(config: OtlpConfig) -> ssl.SSLContext:
    """What is needed to speak TLS. Raises `StartError` for files that cannot be used."""
    ca, certificate, key = config.tls.ca, config.tls.certificate, config.tls.key
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(config, f"{ca}", error) from None
    if certificate is not None:
        try:
            # With a password, be it a wrong one, a key that asks for one is an error: without, OpenSSL asks the terminal and waits.
            context.load_cert_chain(certificate, key, password="")
        except (OSError, ssl.SSLError) as error:
            raise _unusable(config, f"{certificate} with {key}", error) from None
    return context


def _unusable(config: OtlpConfig, files: str, error: OSError) -> StartError:
    return StartError(f"cannot use {files} for {config.endpoint}: {error.strerror or error}", 78)


def system_roots() -> bytes | None:
    """The authorities that the system trusts, in PEM, for a library that would trust its own; None if it has none."""
    paths = ssl.get_default_verify_paths()
    files = [Path(paths.cafile)] if paths.cafile else []
    if paths.capath:
        files += sorted(Path(paths.capath).glob("*.[0-9]"))
    return b"\n".join(each.read_bytes() for each in files if each.is_file()) or None
