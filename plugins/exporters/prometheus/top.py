"""`metrics-service top`: what flows through the running service, told by its own telemetry."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.error import HTTPError

import click

from pipeline import Invocation, StartError, fetch_local, local_url
from plugins.exporters.prometheus.exporter import PrometheusConfig
from plugins.exporters.prometheus.flow import table
from plugins.exporters.prometheus.rates import Samples, rates, read_samples

SCRAPE_SECONDS = 10
"""How long a scrape may take."""
TRY_AGAIN = 0.5
"""Seconds, while the service starts."""
_USER_MISTAKE = 2
_UNAUTHORIZED, _UNAVAILABLE = 401, 503


@click.command()
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds between two scrapes."
)
@click.option("--once", is_flag=True, help="Show one table and end.")
@click.pass_obj
def top(invocation: Invocation, interval: float, once: bool) -> None:
    """Show what flows through the running service, until Ctrl-C."""
    config = _config(invocation)
    url = local_url(config, "/metrics")
    headers = {"X-API-Key": config.key.get_secret_value()} if config.key else {}
    with suppress(KeyboardInterrupt):
        for shown in _tables(url, headers, interval):
            if once:
                click.echo(shown, nl=False)
                return
            if sys.stdout.isatty():
                click.clear()
            click.echo(shown)


def _config(invocation: Invocation) -> PrometheusConfig:
    for spec in invocation.load().components.values():
        if isinstance(spec.config, PrometheusConfig):
            return spec.config
    raise StartError(
        "no pipeline of the configuration has an enabled exporter of the type 'prometheus', which `top` asks",
        _USER_MISTAKE,
    )


def _tables(url: str, headers: dict[str, str], interval: float) -> Iterator[str]:
    before, scraped_at = _scrape(url, headers)
    while True:
        time.sleep(interval)
        after, now = _scrape(url, headers)
        yield f"{url}, over {now - scraped_at:.1f} s\n{table(after, rates(before, after, now - scraped_at))}"
        before, scraped_at = after, now


def _scrape(url: str, headers: dict[str, str]) -> tuple[Samples, float]:
    """What the service says of itself, and when by the monotonic clock. Waits while the service starts."""
    is_told = False
    while True:
        try:
            text = fetch_local(url, SCRAPE_SECONDS, headers)
        except HTTPError as error:
            if error.code == _UNAUTHORIZED:
                raise StartError(
                    f"{url}: the running service has another key than the configuration", _USER_MISTAKE
                ) from None
            if error.code != _UNAVAILABLE:
                raise StartError(f"{url}: {error}") from None
        except OSError as error:
            reason = getattr(error, "reason", error)  # of what urllib has wrapped
            raise StartError(f"{url}: {reason} (the service of this configuration must be running)") from None
        else:
            scraped_at = time.monotonic()
            return _read(url, text), scraped_at
        if not is_told:
            click.echo(f"{url}: the service is starting", err=True)
            is_told = True
        time.sleep(TRY_AGAIN)


def _read(url: str, text: str) -> Samples:
    with suppress(ValueError, IndexError):
        if samples := read_samples(text):
            return samples
    raise StartError(f"{url}: the answer is not the telemetry of a metrics-service")
