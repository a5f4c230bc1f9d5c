"""Masks the secrets of the configuration in text that others wrote: answers, exceptions, log lines.

Another side may repeat what we sent: a collector quotes our headers in its 401, a proxy shows them in its error page. So a secret is
recognized in the forms in which it is sent and quoted: as it is, as a part of `Bearer`, `Basic` and URLs, in Base64, percent-encoded,
escaped for JSON, HTML and Python, and cut short.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

from pydantic import BaseModel, SecretBytes, SecretStr

if TYPE_CHECKING:
    from pipeline.config.model import Configuration

MASK = "***"
SHORTEST = 4
"""The shortest secret that is masked in text of others, in characters."""
SHORTEST_LOGGED = 8
"""The same for our own log lines, which must stay readable beside a secret that is a short word."""
LONG, CUT = 24, 16
"""A secret of `LONG` characters is also recognized by its first `CUT`, in case the other side cut it short."""

_CREDENTIAL = re.compile(r"auth|cookie|cred|key|pass|secret|session|signature|token", re.IGNORECASE)
"""Names of headers whose values are credentials. The value of another, such as a tenant's name, may be an everyday word."""
_SCHEME = re.compile(r"(?:basic|bearer|digest|token|apikey) +(\S.*)", re.IGNORECASE)


class Masker:
    """Masks a growing set of secrets. A secret that a reload replaced stays masked."""

    def __init__(self) -> None:
        self._secrets: set[str] = set()
        self._forms: dict[str, None] = {}
        """Longest first, so that no form leaves the rest of a longer one behind."""
        self._logged: tuple[str, ...] = ()
        self._cuts: dict[str, str] = {}

    def keep(self, secret: str, *, is_word: bool = False) -> None:
        """Mask this secret from now on. One that may be an everyday word (`is_word`) is masked in text of others only."""
        for part in _parts(secret):
            if len(part) < SHORTEST or part in self._secrets:
                continue
            self._secrets.add(part)
            forms = set(_forms(part))
            self._forms = dict.fromkeys(sorted({*self._forms, *forms}, key=len, reverse=True))
            if len(part) >= SHORTEST_LOGGED and not is_word:
                self._logged = tuple(sorted({*self._logged, *forms}, key=len, reverse=True))
            if len(part) >= LONG:
                self._cuts |= {form[:CUT]: form for form in forms}

    def forget(self) -> None:
        """Mask nothing more."""
        self._secrets.clear()
        self._forms, self._logged, self._cuts = {}, (), {}

    def mask(self, text: str) -> str:
        """The text of another side without the secrets."""
        return self._cut(_without(text, self._forms))

    def mask_line(self, text: str) -> str:
        """The same for a line of our own log."""
        return self._cut(_without(text, self._logged))

    def _cut(self, text: str) -> str:
        for cut, form in self._cuts.items():
            while (at := text.find(cut)) >= 0:
                end = at + CUT
                while end < len(text) and text[end] == form[end - at : end - at + 1]:
                    end += 1
                text = f"{text[:at]}{MASK}{text[end:]}"
        return text


def _without(text: str, forms: Iterable[str]) -> str:
    for form in forms:
        if form in text:
            text = text.replace(form, MASK)
    return text


def _parts(secret: str) -> Iterator[str]:
    """The secret, and what is secret within it: the token of a header, the password of a URL or of `Basic`."""
    secret = secret.strip()
    yield secret
    if found := _SCHEME.fullmatch(secret):
        yield found[1]
        try:
            pair = base64.b64decode(found[1], validate=True).decode()
        except ValueError:
            pair = ""
        if ":" in pair:
            yield pair
            yield pair.partition(":")[2]
    try:
        url = urlsplit(secret)
        password = url.password
    except ValueError:
        password = None
    if password:
        yield password
        yield unquote(password)
        yield f"{unquote(url.username or '')}:{unquote(password)}"


def _forms(secret: str) -> Iterator[str]:
    """The forms in which the secret may be quoted."""
    yield secret
    yield repr(secret)[1:-1]
    for escaped in (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
        yield escaped
        yield json.dumps(escaped)[1:-1]
        yield escaped.replace("/", "\\/")
    yield html.escape(secret)
    yield html.escape(secret, quote=False)
    for quoted in (quote(secret), quote(secret, safe=""), quote_plus(secret)):
        yield quoted
        yield re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), quoted)
    content = secret.encode("utf-8", "surrogatepass")
    for encoded in _base64(content):
        yield encoded
        yield encoded.translate(str.maketrans("+/", "-_"))
    yield content.hex()


def _base64(content: bytes) -> Iterator[str]:
    """The content in Base64, alone and inside of something longer: the characters that do not depend on what surrounds it."""
    yield base64.b64encode(content).decode()
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + content).decode()
        inner = encoded[(before * 8 + 5) // 6 : (before + len(content)) * 8 // 6]
        if len(inner) >= SHORTEST_LOGGED:
            yield inner


MASKER = Masker()
"""That of the process, as its logs are."""


def keep_secret(secret: str) -> None:
    """Have this secret masked wherever the service logs or shows text: for a component with a secret that is not one of its options."""
    MASKER.keep(secret)


def mask(text: str) -> str:
    """The text of another side without the secrets of the configuration. Call it before you cut, log or answer such text.

    The engine masks the errors that a component raises.
    """
    return MASKER.mask(text)


def keep_configured(configuration: Configuration) -> None:
    """Have all secrets of the components that are used masked."""
    for spec in (*configuration.extensions, *configuration.components.values()):
        keep_secrets(spec.config)


def keep_secrets(value: Any, name: str | None = None) -> None:
    """Have all secrets in a configuration masked. `name` is the key of the mapping that holds the value, if one does."""
    if isinstance(value, SecretStr | SecretBytes):
        secret = value.get_secret_value()
        text = secret if isinstance(secret, str) else secret.decode("utf-8", "replace")
        MASKER.keep(text, is_word=name is not None and not _CREDENTIAL.search(name))
        for pair in text.split(","):
            key, equals, item = pair.partition("=")
            if equals and item:  # the form of OTEL_EXPORTER_OTLP_HEADERS
                MASKER.keep(unquote(item), is_word=not _CREDENTIAL.search(unquote(key)))
    elif isinstance(value, BaseModel):
        for field in type(value).model_fields:
            keep_secrets(getattr(value, field))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            keep_secrets(item, str(key))
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            keep_secrets(item, name)
