"""OTLP over HTTP: one POST a request, of which the answer is read within limits."""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import Mapping

import aiohttp
from google.protobuf.message import DecodeError

from pipeline import mask
from plugins.exporters.otlp.answers import Action, Answer, of_http, of_proxy, printable
from plugins.exporters.otlp.config import OtlpConfig, header_values
from plugins.exporters.otlp.proxy import proxy_for
from plugins.exporters.otlp.request import gzipped, read_error, read_response
from plugins.exporters.otlp.tls import client_context
from plugins.exporters.otlp.transport import Result

MOST_RESPONSE = 4 * 2**20
"""Bytes of an answer: one that is larger is not read to its end (OTLP's specification, section "Response size limit")."""
MOST_ERROR = 2**16
"""Bytes of an answer that is no success."""
IN_THREAD = 2**14
"""Bytes from which on compressing is given to a thread, so that the loop goes on meanwhile."""


class HttpTransport:
    """A session with a collector, over HTTP."""

    def __init__(self, config: OtlpConfig, user_agent: str, environ: Mapping[str, str]) -> None:
        self._config = config
        self._environ = environ
        own = header_values(config.headers)
        ours = {"User-Agent": user_agent, "Accept-Encoding": "identity"}
        replaced = {name.lower() for name in own}
        self._headers = {name: value for name, value in ours.items() if name.lower() not in replaced} | own
        self._headers["Content-Type"] = "application/x-protobuf"
        if config.compression == "gzip":
            self._headers["Content-Encoding"] = "gzip"
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Read the certificates. Raises `StartError`."""
        self._proxy = proxy_for(self._config, self._environ)
        # It is not told to trust the environment: it would send a password that ~/.netrc has for the host.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=client_context(self._config)),
            timeout=aiohttp.ClientTimeout(total=self._config.timeout),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def stop(self) -> None:
        """Close all connections. Safe twice and without `start`."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, body: bytes) -> Result:
        """Send one request, and say what came of it, whatever that is."""
        if self._config.compression == "gzip":
            body = gzipped(body) if len(body) < IN_THREAD else await asyncio.to_thread(gzipped, body)
        assert self._session is not None, "started before it is used"
        try:
            async with self._session.post(
                self._config.url, data=io.BytesIO(body), headers=self._headers, allow_redirects=False, proxy=self._proxy
            ) as response:
                return await _read(response)
        except aiohttp.ClientHttpProxyError as error:
            return Result(of_proxy(error.status, mask(f"it answers {error.status} {error.message}")))
        except TimeoutError:
            return Result(Answer(Action.RETRY, f"no answer within {self._config.timeout:g} s", ambiguous=True))
        except (aiohttp.ClientError, OSError) as error:
            return Result(_of_failure(error))


def _of_failure(error: Exception) -> Answer:
    """What it means that there is no answer."""
    text = printable(mask(str(error)) or type(error).__name__)
    # A server that asks for our certificate says so behind the handshake, when we seem to be connected.
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
        return Answer(Action.HOLD, "certificate", text)
    if isinstance(error, aiohttp.ClientConnectorError):
        return Answer(Action.RETRY, "cannot connect", text)
    return Answer(Action.RETRY, "connection lost", text, ambiguous=True)


async def _read(response: aiohttp.ClientResponse) -> Result:
    """The answer, of which no more is read than is needed; what is left ends with the connection."""
    if response.status != 200:
        text = read_error(await _beginning(response), response.headers.get("Content-Type", ""))
        return Result(of_http(response.status, response.headers, mask(text or response.reason or "")))
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MOST_RESPONSE:
            response.close()
            text = f"the answer is larger than {MOST_RESPONSE} bytes"
            return Result(Answer(Action.SET_ASIDE, "HTTP 200", text, ambiguous=True))
    taken = of_http(200, response.headers, "")
    try:
        rejected, message = read_response(bytes(body))
    except DecodeError:
        return Result(taken, readable=False)
    return Result(taken, rejected, message)


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """What there is of a body that only explains: the status is the answer, even if the rest never comes."""
    body = bytearray()
    try:
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MOST_ERROR:
                break
    except (aiohttp.ClientError, OSError, TimeoutError):
        pass
    if not response.content.at_eof():
        response.close()
    return bytes(body[:MOST_ERROR])
