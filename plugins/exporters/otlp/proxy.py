"""The way out: which proxy a request goes through, by the configuration or else by the environment, the same for both protocols."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # typeshed does not have it

from pipeline import StartError, keep_secret
from plugins.exporters.otlp.config import OtlpConfig, is_proxy_url


def proxy_for(config: OtlpConfig, environ: Mapping[str, str]) -> str | None:
    """The proxy's URL, which may hold a credential; None for none.

    Raises `StartError` for a variable that names no HTTP proxy.
    """
    if config.proxy is not None:
        return config.proxy.get_secret_value()
    url = urlsplit(config.endpoint or "")
    name, value = _variable(environ, f"{url.scheme}_proxy")
    _, excluded = _variable(environ, "no_proxy")
    # As the standard library reads it: names and endings of names, * for all.
    if not value or any(proxy_bypass_environment(host, {"no": excluded}) for host in (url.netloc, url.hostname or "")):
        return None
    value = value if "://" in value else f"http://{value}"
    if not is_proxy_url(value):
        raise StartError(f"{name} is no URL of an HTTP proxy (must be like http://proxy.example.com:3128)", 78)
    keep_secret(value)
    return value


def _variable(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """The variable and its value; in lower case it wins."""
    name = name if environ.get(name) else name.upper()
    return name, environ.get(name, "").strip()
