"""How a command asks the service that runs on this machine."""

from __future__ import annotations

import http.client
import ssl
import urllib.request
from collections.abc import Mapping

from pipeline.config.fields import ListenerConfig

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - replaced, not bound


def local_url(listener: ListenerConfig, path: str) -> str:
    """The URL of a path on that listener, by which this machine reaches it wherever it is bound."""
    scheme = "https" if listener.tls.certificate else "http"
    host = _LOOPBACK.get(listener.host, listener.host)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.port}{path}"


def fetch_local(url: str, timeout: float, headers: Mapping[str, str] | None = None) -> str:
    """What a GET of a `local_url` is answered with; `timeout` is in seconds.

    Raises `OSError` if there is no good answer: an `urllib.error.HTTPError`, with its status, if there is a bad one.
    """
    # Our own port on this machine, by an address that its certificate does not name.
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    # Without a proxy: one from the environment would ask its own loopback.
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unverified)
    )
    try:
        request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 - a local_url
        with direct.open(request, timeout=timeout) as answer:
            return str(answer.read().decode())
    except (http.client.HTTPException, ValueError) as error:
        # By its name alone: of a header that cannot be sent, the message holds the key.
        raise OSError(f"no HTTP or no text was exchanged ({type(error).__name__})") from None
