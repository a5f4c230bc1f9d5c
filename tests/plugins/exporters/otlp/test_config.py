"""The options: what is right, what is wrong and in which words, and that no secret is in any of them."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import Kind
from pipeline.config.load import load_configuration
from pipeline.config.model import Configuration
from pipeline.config.show import print_config
from pipeline.errors import ConfigError
from pipeline.registry import load_registry
from plugins.exporters.otlp.config import OtlpConfig, header_values, parse_headers
from tests.leaks import secret
from tests.running import environment

SECRET = secret("hush-hush-and-never-say-it")
GOOD = "http://collector"


def loaded(folder: Path, *overrides: str, **variables: str) -> Configuration:
    """The shipped configuration, with these."""
    return load_configuration(["production"], overrides, environment(folder, **variables), load_registry())


def problem(folder: Path, *overrides: str, **variables: str) -> str:
    """The one thing that is wrong."""
    with pytest.raises(ConfigError) as raised:
        loaded(folder, *overrides, **variables)
    (found,) = raised.value.problems
    assert SECRET not in str(raised.value)
    assert SECRET not in repr(raised.value)
    return str(found)


def options(folder: Path, *overrides: str, **variables: str) -> OtlpConfig:
    """Those of the shipped exporter."""
    found = loaded(folder, *overrides, **{"OTEL_OTLP_ENDPOINT": GOOD, **variables})
    config = found.components[Kind.EXPORTER, "otlp"].config
    assert isinstance(config, OtlpConfig)
    return config


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://collector", "http://collector/v1/metrics"),
        ("https://collector:4318/", "https://collector:4318/v1/metrics"),
        ("https://collector/otlp", "https://collector/otlp/v1/metrics"),
        ("https://collector/otlp/", "https://collector/otlp/v1/metrics"),
        ("https://collector/v1/metrics", "https://collector/v1/metrics"),
        ("https://collector/a/v1/metrics/", "https://collector/a/v1/metrics"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/metrics"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1/v1/metrics"),
        ("HTTPS://Collector", "HTTPS://Collector/v1/metrics"),
    ],
)
def test_endpoints(endpoint: str, url: str, tmp_path: Path) -> None:
    assert options(tmp_path, OTEL_OTLP_ENDPOINT=endpoint).url == url


NOT_HTTP = "must be a URL of http or https, got {!r} (for example https://collector.example.com:4318)"
NO_URL = "is no URL (for example https://collector.example.com:4318)"
CREDENTIAL = "must have no user name and no password in it (headers: can carry a credential)"


@pytest.mark.parametrize(
    ("endpoint", "wrong"),
    [
        ("collector:4318", NOT_HTTP),
        ("collector", NOT_HTTP),
        ("ftp://collector", NOT_HTTP),
        ("http://", NOT_HTTP),
        ("http://:4318", NOT_HTTP),
        ("http://collector:0", NOT_HTTP),
        ("http://a b", NOT_HTTP),
        ("http:/collector", NOT_HTTP),
        ("http://collector:port", NO_URL),
        ("http://collector:65536", NO_URL),
        ("http://[::1", NO_URL),
        (f"http://me:{SECRET}@collector", CREDENTIAL),
        (f"ftp://me:{SECRET}@collector", CREDENTIAL),
        (f"me:{SECRET}@collector:4318", CREDENTIAL),
        ("http://me@collector", CREDENTIAL),
        ("http://collector?a=b", "must end with its path, got {!r}"),
        ("http://collector?", "must end with its path, got {!r}"),
        ("http://collector/#", "must end with its path, got {!r}"),
    ],
)
def test_endpoints_that_are_wrong(endpoint: str, wrong: str, tmp_path: Path) -> None:
    found = problem(tmp_path, OTEL_OTLP_ENDPOINT=endpoint)
    assert "exporters.otlp.endpoint" in found
    assert wrong.format(endpoint) in found


@given(st.text() | st.builds("http://{}".format, st.text(string.printable)))
@example("http://a\n")
@example("http://a%zz")
def test_an_endpoint_is_taken_or_refused(endpoint: str) -> None:
    try:
        config = OtlpConfig.model_validate({"endpoint": endpoint})
    except ValidationError:
        pass
    else:
        assert config.endpoint is None or config.url.endswith("/v1/metrics")


def test_without_an_endpoint_it_is_left_out(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    assert (Kind.EXPORTER, "otlp") not in found.components
    assert all("otlp" not in pipeline.exporters for pipeline in found.pipelines)
    there = loaded(tmp_path, OTEL_OTLP_ENDPOINT=GOOD)
    assert "metrics" in [pipeline.id for pipeline in there.pipelines if "otlp" in pipeline.exporters]


def test_an_endpoint_that_is_not_mentioned_at_all_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: production\nexporters: {otlp/eu: {timeout: 1}}\n")
    with pytest.raises(ConfigError, match=r"exporters\.otlp/eu\.endpoint"):
        load_configuration([str(tmp_path / "mine.yaml")], [], environment(tmp_path), load_registry())


def test_headers_as_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: production\nexporters: {otlp: {headers: {Authorization: 'Bearer ${env:TOKEN}', X-Scope: 'a,b=c%20'}}}\n"
    )
    environ = environment(tmp_path, OTEL_OTLP_ENDPOINT=GOOD, TOKEN=SECRET)
    found = load_configuration([str(tmp_path / "mine.yaml")], [], environ, load_registry())
    config = found.components[Kind.EXPORTER, "otlp"].config
    assert isinstance(config, OtlpConfig)
    assert header_values(config.headers) == {"Authorization": f"Bearer {SECRET}", "X-Scope": "a,b=c%20"}
    assert SECRET not in repr(config)
    assert SECRET not in print_config(found)


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ("", {}),
        ("a=b", {"a": "b"}),
        (" a = b , c=d ,", {"a": "b", "c": "d"}),
        ("authorization=Bearer%20abc", {"authorization": "Bearer abc"}),
        ("authorization=Basic dXNlcjpwYXNz==", {"authorization": "Basic dXNlcjpwYXNz=="}),
        ("a=", {"a": ""}),
        ("a=b%2Cc%3Dd", {"a": "b,c=d"}),
        ("a=1+1", {"a": "1+1"}),
    ],
)
def test_headers_as_text(text: str, headers: dict[str, str], tmp_path: Path) -> None:
    assert header_values(options(tmp_path, OTEL_EXPORTER_OTLP_HEADERS=text).headers) == headers


NAMES = st.text(string.ascii_letters + string.digits + "-._", min_size=1)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)).map(str.strip)


@given(st.dictionaries(NAMES, VALUES))
def test_headers_survive_being_written_as_text(headers: dict[str, str]) -> None:
    text = ",".join(f"{quote(name)}={quote(value, safe='')}" for name, value in headers.items())
    assert parse_headers(text) == headers


@given(st.text())
def test_headers_as_text_are_read_or_refused_without_being_quoted(text: str) -> None:
    try:
        config = OtlpConfig.model_validate({"endpoint": GOOD, "headers": text})
    except ValidationError as error:
        for each in error.errors():
            assert each["msg"].startswith("Value error, has ")
    else:
        for value in header_values(config.headers).values():
            value.encode("ascii")
            assert value.isprintable() or not value


@pytest.mark.parametrize(
    ("headers", "wrong"),
    [
        (f"authorization {SECRET}", "has no '=' in its pair number 1 (must be name=value,name=value)"),
        (f"a=b,{SECRET}", "has no '=' in its pair number 2 (must be name=value,name=value)"),
        (f"={SECRET}", "has a name that is none of a header (must be letters, digits and -)"),
        (f"a b={SECRET}", "has a name that is none of a header (must be letters, digits and -)"),
        (f"a={SECRET}%0d%0ab:c", "has a value for 'a' that no header may have (must be printable ASCII)"),
        (f"a={SECRET}é", "has a value for 'a' that no header may have (must be printable ASCII)"),
        (f"Content-Type={SECRET}", "has 'Content-Type', which the exporter sets itself (must be another)"),
        (f"host={SECRET}", "has 'host', which the exporter sets itself (must be another)"),
    ],
)
def test_headers_that_are_wrong(headers: str, wrong: str, tmp_path: Path) -> None:
    found = problem(tmp_path, OTEL_OTLP_ENDPOINT=GOOD, OTEL_EXPORTER_OTLP_HEADERS=headers)
    assert f"exporters.otlp.headers: {wrong}" in found


@pytest.mark.parametrize("name", ["grpc-timeout", "key-bin", "a~b", "a!b"])
def test_headers_that_grpc_cannot_send(name: str, tmp_path: Path) -> None:
    variables = {"OTEL_OTLP_ENDPOINT": GOOD, "OTEL_EXPORTER_OTLP_HEADERS": f"{name}={SECRET}"}
    options(tmp_path, **variables)
    found = problem(tmp_path, OTEL_EXPORTER_OTLP_PROTOCOL="grpc", **variables)
    assert f"headers has {name!r}, which gRPC cannot send" in found


@pytest.mark.parametrize("value", ["[a]", "{b: c}"])
def test_a_header_that_is_no_text_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: production\nexporters: {{otlp: {{headers: {{a: {value}}}}}}}\n")
    environ = environment(tmp_path, OTEL_OTLP_ENDPOINT=GOOD)
    with pytest.raises(ConfigError) as raised:
        load_configuration([str(tmp_path / "mine.yaml")], [], environ, load_registry())
    assert "exporters.otlp.headers.a: must be text" in str(raised.value)


def test_secrets_are_shown_nowhere(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        f"exporters.otlp.proxy=http://me:{SECRET}@proxy:3128",
        OTEL_OTLP_ENDPOINT=GOOD,
        OTEL_EXPORTER_OTLP_HEADERS=f"authorization={SECRET}",
    )
    assert SECRET not in print_config(found)
    assert SECRET not in repr(found.components[Kind.EXPORTER, "otlp"].config)


@pytest.mark.parametrize(
    "proxy", [f"socks5://{SECRET}@proxy", f"proxy:{SECRET}", f"https://{SECRET}@proxy", f"http:///{SECRET}"]
)
def test_a_proxy_that_is_none(proxy: str, tmp_path: Path) -> None:
    found = problem(tmp_path, f"exporters.otlp.proxy={proxy}", OTEL_OTLP_ENDPOINT=GOOD)
    assert "exporters.otlp.proxy: is no URL of an HTTP proxy (must be like http://proxy.example.com:3128)" in found


@pytest.mark.parametrize(("milliseconds", "seconds"), [("", 10.0), ("10000", 10.0), ("1500", 1.5), ("1", 0.001)])
def test_the_timeout_of_the_variable_is_in_milliseconds(milliseconds: str, seconds: float, tmp_path: Path) -> None:
    assert options(tmp_path, OTEL_EXPORTER_OTLP_TIMEOUT=milliseconds).timeout == pytest.approx(seconds)


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "1s"])
def test_a_timeout_that_is_none(timeout: str, tmp_path: Path) -> None:
    found = problem(tmp_path, OTEL_OTLP_ENDPOINT=GOOD, OTEL_EXPORTER_OTLP_TIMEOUT=timeout)
    assert "exporters.otlp.timeout" in found


def test_a_certificate_and_its_key_are_both_or_none(tmp_path: Path) -> None:
    variables: dict[str, Any] = {"OTEL_OTLP_ENDPOINT": GOOD}
    alone = problem(tmp_path, OTEL_EXPORTER_OTLP_CLIENT_KEY="k.pem", **variables)
    assert "exporters.otlp.tls: has a key and no certificate (must have both or none)" in alone
    alone = problem(tmp_path, OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE="c.pem", **variables)
    assert "exporters.otlp.tls: has a certificate and no key (must have both or none)" in alone
    both = options(tmp_path, OTEL_EXPORTER_OTLP_CLIENT_KEY="k.pem", OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE="c.pem")
    assert (both.tls.certificate, both.tls.key) == (Path("c.pem"), Path("k.pem"))


def test_grpc_has_no_path(tmp_path: Path) -> None:
    variables = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    found = problem(tmp_path, OTEL_OTLP_ENDPOINT="http://collector/v1/metrics", **variables)
    assert "endpoint 'http://collector/v1/metrics' has a path (must have none for gRPC" in found
    assert options(tmp_path, OTEL_OTLP_ENDPOINT="http://collector/", **variables).endpoint == "http://collector"


@pytest.mark.parametrize(
    ("variable", "value"), [("PROTOCOL", "http/json"), ("COMPRESSION", "zstd"), ("PROTOCOL", "GRPC")]
)
def test_words_that_are_none(variable: str, value: str, tmp_path: Path) -> None:
    variables = {f"OTEL_EXPORTER_OTLP_{variable}": value}
    assert f"exporters.otlp.{variable.lower()}" in problem(tmp_path, OTEL_OTLP_ENDPOINT=GOOD, **variables)


def test_all_variables_empty_is_as_if_they_were_not_there(tmp_path: Path) -> None:
    names = "PROTOCOL HEADERS COMPRESSION TIMEOUT CERTIFICATE CLIENT_CERTIFICATE CLIENT_KEY"
    empty = {f"OTEL_EXPORTER_OTLP_{name}": "" for name in names.split()}
    assert options(tmp_path, **empty) == options(tmp_path)
