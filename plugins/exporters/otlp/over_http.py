"""OTLP over HTTP: one POST a request, of which the answer is read within limits."""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
from google.protobuf.message import DecodeError

from pipeline import StartError
from plugins.exporters.otlp.answers import Action, Answer, of_http
from plugins.exporters.otlp.config import OtlpConfig, header_values
from plugins.exporters.otlp.request import gzipped, read_error, read_response
from plugins.exporters.otlp.transport import Result

MOST_RESPONSE = 4 * 2**20
"""Bytes of an answer: one that is larger is not read to its end (OTLP's specification, section "Response size limit")."""
MOST_ERROR = 2**16
IN_THREAD = 2**14
"""Bytes from which on compressing is given to a thread, so that the loop goes on meanwhile."""


class HttpTransport:
    """A session with a collector, over HTTP."""

    def __init__(self, config: OtlpConfig, user_agent: str) -> None:
        self._config = config
        self._headers = {
            "Content-Type": "application/x-protobuf",
            "Accept-Encoding": "identity",
            "User-Agent": user_agent,
            **header_values(config.headers),
        }
        if config.compression == "gzip":
            self._headers["Content-Encoding"] = "gzip"
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Read the certificates. Raises `StartError`."""
        config = self._config
        self._proxy = None if config.proxy is None else config.proxy.get_secret_value()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=_ssl_context(config)),
            timeout=aiohttp.ClientTimeout(total=config.timeout),
            trust_env=config.proxy is None,
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
                self._config.url, data=body, headers=self._headers, allow_redirects=False, proxy=self._proxy
            ) as response:
                return await _read(response)
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            return Result(Answer(Action.HOLD, "certificate", str(error)))
        except aiohttp.ClientHttpProxyError as error:
            return Result(of_http(error.status, error.headers or {}, f"the proxy says {error.message}"))
        except aiohttp.ClientConnectorError as error:
            return Result(Answer(Action.RETRY, "cannot connect", str(error)))
        except TimeoutError:
            return Result(Answer(Action.RETRY, f"no answer within {self._config.timeout:g} s", ambiguous=True))
        except (aiohttp.ClientError, OSError) as error:
            return Result(Answer(Action.RETRY, "connection lost", str(error) or type(error).__name__, ambiguous=True))


async def _read(response: aiohttp.ClientResponse) -> Result:
    """The answer, of which no more is read than is needed; what is left ends with the connection."""
    limit = MOST_RESPONSE if response.status == 200 else MOST_ERROR
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            response.close()
            if response.status == 200:
                text = f"the answer is larger than {MOST_RESPONSE} bytes"
                return Result(Answer(Action.SET_ASIDE, "HTTP 200", text, ambiguous=True))
            break
    if response.status != 200:
        text = read_error(bytes(body[:limit]), response.headers.get("Content-Type", ""))
        return Result(of_http(response.status, response.headers, text or response.reason or ""))
    taken = of_http(200, response.headers, "")
    try:
        rejected, message = read_response(bytes(body))
    except DecodeError:
        return Result(taken, readable=False)
    return Result(taken, rejected, message)


def _ssl_context(config: OtlpConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.tls.ca)
        if config.tls.certificate is not None:
            context.load_cert_chain(config.tls.certificate, config.tls.key)
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"cannot use the certificates for {config.endpoint}: {error}", 78) from None
    return context
