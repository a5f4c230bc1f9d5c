"""OTLP over gRPC: one call a request, with the body as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from pipeline import mask
from plugins.exporters.otlp.answers import Action, Answer, of_grpc
from plugins.exporters.otlp.config import OtlpConfig, header_values
from plugins.exporters.otlp.proxy import proxy_for
from plugins.exporters.otlp.request import read_response
from plugins.exporters.otlp.tls import client_context, system_roots
from plugins.exporters.otlp.transport import Result

METHOD = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
MOST_RESPONSE = 4 * 2**20
STATUS_DETAILS = "grpc-status-details-bin"
RECONNECT_MS = (("initial", 1000), ("min", 1000), ("max", 30_000))
"""gRPC's own pauses between connections; at its defaults it would not even try, two minutes long, while we do."""


class GrpcTransport:
    """A channel to a collector."""

    def __init__(self, config: OtlpConfig, user_agent: str, environ: Mapping[str, str]) -> None:
        self._config = config
        self._environ = environ
        self._url = urlsplit(config.endpoint or "")
        self._metadata = tuple((name.lower(), value) for name, value in header_values(config.headers).items())
        self._options: list[tuple[str, int | str]] = [
            ("grpc.primary_user_agent", user_agent),
            ("grpc.max_receive_message_length", MOST_RESPONSE),
            ("grpc.use_local_subchannel_pool", 1),
            *((f"grpc.{which}_reconnect_backoff_ms", pause) for which, pause in RECONNECT_MS),
        ]
        self._credentials: grpc.ChannelCredentials | None = None
        self._channel: grpc.aio.Channel | None = None

    async def start(self) -> None:
        """Read the certificates; the connection is made when there is something to send. Raises `StartError`."""
        proxy = proxy_for(self._config, self._environ)
        # Without being told it would look into the environment itself, and read it differently.
        self._options.append(("grpc.enable_http_proxy", 0) if proxy is None else ("grpc.http_proxy", proxy))
        if self._url.scheme == "https":
            self._credentials = _credentials(self._config)
        self._connect()

    def _connect(self) -> None:
        url = self._url
        target = f"dns:///{url.netloc if url.port else f'{url.netloc}:{443 if self._credentials else 80}'}"
        compression = grpc.Compression.Gzip if self._config.compression == "gzip" else grpc.Compression.NoCompression
        if self._credentials is not None:
            self._channel = grpc.aio.secure_channel(target, self._credentials, self._options, compression)
        else:
            self._channel = grpc.aio.insecure_channel(target, self._options, compression)
        self._export = self._channel.unary_unary(METHOD, request_serializer=bytes, response_deserializer=bytes)

    async def stop(self) -> None:
        """Close the channel. Safe twice and without `start`."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def send(self, body: bytes) -> Result:
        """Send one request, and say what came of it, whatever that is."""
        try:
            response = await self._export(body, timeout=self._config.timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            if code == "DEADLINE_EXCEEDED":
                await self._connect_anew()
            if code == "RESOURCE_EXHAUSTED" and "CLIENT: Received message larger" in (error.details() or ""):
                text = f"the answer is larger than {MOST_RESPONSE} bytes"
                return Result(Answer(Action.SET_ASIDE, "OK", text, ambiguous=True))
            return Result(of_grpc(code, mask(error.details() or ""), _retry_after(error)))
        taken = of_grpc("OK", "")
        try:
            rejected, message = read_response(response)
        except DecodeError:
            return Result(taken, readable=False)
        return Result(taken, rejected, message)

    async def _connect_anew(self) -> None:
        """Leave a connection that may be dead: gRPC would use it until TCP gives it up, a quarter of an hour later."""
        if self._channel is not None:
            channel = self._channel
            self._connect()
            await channel.close()


def _retry_after(error: grpc.aio.AioRpcError) -> float | None:
    """The delay of a `RetryInfo` among the details of a status, in seconds."""
    for name, value in error.trailing_metadata() or ():
        if name == STATUS_DETAILS and isinstance(value, bytes):
            try:
                for detail in Status.FromString(value).details:
                    info = RetryInfo()
                    if detail.Unpack(info):
                        return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
            except DecodeError:
                return None
    return None


def _credentials(config: OtlpConfig) -> grpc.ChannelCredentials:
    client_context(config)  # says what is wrong with them: gRPC would only fail to connect
    roots = system_roots() if config.tls.ca is None else config.tls.ca.read_bytes()
    return grpc.ssl_channel_credentials(roots, _bytes(config.tls.key), _bytes(config.tls.certificate))


def _bytes(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
