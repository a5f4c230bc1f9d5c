"""Lets in whoever has a good key with the scope that the request needs.

    extensions:
      database:
        path: ./metrics.db
      api_keys:
    processors:
      auth:

It comes first, since the processors behind it ask who the caller is.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import (
    ComponentConfig,
    Context,
    Declaration,
    Forbidden,
    Host,
    KeyStore,
    Processor,
    Signal,
    Unauthenticated,
    hookimpl,
)


class AuthConfig(ComponentConfig):
    """There is nothing to choose: which keys are good is the key store's affair."""


class Auth(Processor[AuthConfig]):
    """Lets in whoever has a good key with the scope that the request needs, before the body is read."""

    authenticates = True
    requires = (KeyStore,)

    def __init__(self, id: str, config: AuthConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self._key_store = host.extension(KeyStore)

    async def admit(self, context: Context) -> None:
        """Set `context.caller`. Raises `Unauthenticated`, or `Forbidden` naming the missing scope, in the words of docs/api.md."""
        if not context.credential:
            raise Unauthenticated("API key required in X-API-Key header")
        # Set before the scope is looked at: an answer to somebody who is known carries the state of the rate limit.
        context.caller = caller = await self._key_store.authenticate(context.credential, context.peer)
        if context.scope is not None and context.scope not in caller.scopes:
            raise Forbidden(f"API key lacks the scope '{context.scope}'")


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """The processor `auth`, for both signals."""
    return [Declaration("auth", Auth, AuthConfig, takes=frozenset(Signal))]
