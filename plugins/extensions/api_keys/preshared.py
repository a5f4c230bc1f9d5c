"""Keys that come from outside, in variables and files, rather than from the table. Only their digests are kept, in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline import Secret, StartError, keep_secret
from plugins.extensions.api_keys.keys import digest

MINIMUM_LENGTH = 32
"""Characters; a shorter key works, with a warning (docs/decisions/0006-refused-or-warned.md)."""
SERVICE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
"""The name of a service (docs/api.md)."""

_FILE = "_FILE"
_EX_CONFIG = 78


@dataclass(frozen=True)
class PreSharedKey:
    """`source` is the variable or option that the key came from, `weak` whether it is too short to be trusted, `file` where it was
    read, if it was."""

    source: str
    service: str
    scopes: frozenset[str]
    digest: str
    weak: bool
    file: Path | None = None


def preshared_keys(
    environ: Mapping[str, str], prefix: str, admin_key: Secret | None, admin_key_file: Path | None
) -> list[PreSharedKey]:
    """All keys from outside: those of the environment, and the admin's if there is one.

    Raises `StartError` for a variable that names no service, a file without a key, a name that is given both as a key and
    as a file, and two sources with the same key. No message holds a value: it might be the key.
    """
    sources: dict[str, str] = {}
    keys = [*_from_environment(environ, prefix), *_admin(admin_key, admin_key_file)]
    for key in keys:
        other = sources.setdefault(key.digest, key.source)
        if other != key.source:
            raise StartError(f"{key.source}: holds the same key as {other} (each service needs its own)", _EX_CONFIG)
    return keys


def _from_environment(environ: Mapping[str, str], prefix: str) -> Iterator[PreSharedKey]:
    values = {name: value.strip() for name, value in environ.items() if name.startswith(prefix) and value.strip()}
    for variable, value in sorted(values.items()):
        is_file = variable.endswith(_FILE)
        name = variable.removesuffix(_FILE)[len(prefix) :]
        service = name.lower().replace("_", "-")
        if not SERVICE_NAME.fullmatch(service):
            raise StartError(
                f"{variable}: names no service (must be {prefix}<NAME> or {prefix}<NAME>_FILE)", _EX_CONFIG
            )
        if is_file and prefix + name in values:
            raise StartError(f"{variable}: {prefix}{name} is set as well (must be one of them)", _EX_CONFIG)
        if is_file:
            yield _key(variable, service, {"ingest"}, _read(variable, Path(value)), Path(value))
        else:
            yield _key(variable, service, {"ingest"}, value)


def _admin(secret: Secret | None, file: Path | None) -> Iterator[PreSharedKey]:
    if file is not None:
        yield _key("admin_key_file", "admin", {"admin", "ingest"}, _read("admin_key_file", file), file)
    elif secret is not None and (key := secret.get_secret_value().strip()):
        yield _key("admin_key", "admin", {"admin", "ingest"}, key)


def _read(source: str, path: Path) -> str:
    try:
        key = path.read_text("utf-8").strip()
    except OSError as error:
        raise StartError(f"{source}: cannot read the file: {error.strerror}", _EX_CONFIG) from None
    except ValueError:
        raise StartError(f"{source}: the file is not text (must hold a key)", _EX_CONFIG) from None
    if not key:
        raise StartError(f"{source}: the file is empty (must hold a key)", _EX_CONFIG)
    return key


def _key(source: str, service: str, scopes: set[str], key: str, file: Path | None = None) -> PreSharedKey:
    keep_secret(key)
    return PreSharedKey(source, service, frozenset(scopes), digest(key), len(key) < MINIMUM_LENGTH, file)
