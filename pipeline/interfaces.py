"""What extensions offer to other components. A component asks its host for the interface and never learns whose it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiosqlite

from pipeline.bucket import TokenBucket
from pipeline.data import Position, Store


class Caller:
    """Whoever a key belongs to. One object a key for as long as the key exists, so that its bucket is shared by everybody
    who asks for it and outlives a configuration.

    `key_id` is short and public: it goes into logs and metrics, and must not be derived from the key. `scopes` holds what the key
    may do. `owner` names the key's holder in the journal's records of idempotency keys; it is never shown, and must stay the same for
    as long as the key is good, on every node. By default it is `key_id`.
    """

    __slots__ = ("bucket", "key_id", "owner", "scopes", "service")

    def __init__(
        self, service: str, key_id: str, scopes: frozenset[str], bucket: TokenBucket, owner: str | None = None
    ) -> None:
        self.service = service
        self.key_id = key_id
        self.scopes = scopes
        self.bucket = bucket
        self.owner = key_id if owner is None else owner


class KeyStore(ABC):
    """Knows whose a key is."""

    @abstractmethod
    async def authenticate(self, credential: str, peer: str = "") -> Caller:
        """Whose key this is. Touches no database for a key that is known. `peer` is the address that it came from, if that is known.

        Raises `Unauthenticated` with the wording of docs/api.md for an unknown, revoked or expired key, and may raise `RateLimited`
        for an unknown one from where many came.
        """


class Database(ABC):
    """Owns one SQLite file: its only writing connection, its schema, its lock, its checkpoints."""

    path: Path

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[aiosqlite.Connection]:
        """The writing connection, inside BEGIN IMMEDIATE, for one user at a time.

        Commits at the end of the block; rolls back when the block raises or is cancelled.
        """

    @abstractmethod
    async def store(self) -> Store:
        """Which database this is, as `Exporter.store` and `Extension.store` name it."""

    @abstractmethod
    def owns_journals(self, folder: Path) -> bool:
        """Whether the journals in a folder of an earlier version, which record no owner, belong to this database.

        Called without `start`. Reads files, and changes none. Raises `StartError` if that is not certain.
        """

    @abstractmethod
    def refuse_journals(self, former: Path, folder: Path) -> None:
        """Raise `StartError` if an earlier version has used the journals in `former` after this version has used those in `folder`.

        Called without `start`. Reads files, and changes none.
        """

    @abstractmethod
    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query, by a connection that cannot write."""


class State(ABC):
    """Keeps what a component derived from data, together with its positions in the data. `Host.state` gives it.

    It is kept beside the journals that the data comes from, so it needs no extension, and restoring a database does not change it.
    `owner` is `kind.id` of the component.
    """

    @abstractmethod
    async def load(self, owner: str) -> tuple[dict[str, Position], dict[str, bytes]]:
        """The positions by pipeline, and the records by name, that `owner` saved last; empty if it never did.

        Called in `start`, before the first `save`. Raises `StateError`, and `StartError` if the state cannot be used. A position may be of
        another journal than the one that feeds `owner` now; the engine decides what that means.
        """

    @abstractmethod
    def store(self, owner: str) -> Store:
        """Where the state of `owner` is kept, for `Exporter.store`. Called after `load`."""

    @abstractmethod
    async def save(self, owner: str, positions: Mapping[str, Position], changed: Mapping[str, bytes]) -> None:
        """Replace these positions and these records of `owner`, in one transaction. What is not named stays as it is.

        Raises `StateError` if that cannot be done now; then nothing has changed. Raises `StateLost` if what was saved before is gone, too.
        """


class FormerState(ABC):
    """Holds saved state of a version that kept it elsewhere. An extension may offer it; each owner's state is copied from it once."""

    @abstractmethod
    async def load(self, owner: str) -> tuple[dict[str, Position], dict[str, bytes]]:
        """The positions by pipeline, and the records by name, of `owner`; empty if there are none. Raises `StateError`."""
