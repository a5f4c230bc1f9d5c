"""Keys from the environment and from files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import Secret, StartError
from plugins.extensions.api_keys.extension import ApiKeysConfig
from plugins.extensions.api_keys.keys import digest
from plugins.extensions.api_keys.preshared import PreSharedKey, preshared_keys

PREFIX = "METRICS_API_KEY_"
LONG = "a-preshared-key-of-more-than-32-characters"


def keys_of(
    environ: dict[str, str], admin_key: Secret | None = None, admin_key_file: Path | None = None
) -> list[PreSharedKey]:
    return preshared_keys(environ, PREFIX, admin_key, admin_key_file)


def refusal_of(environ: dict[str, str], admin_key: Secret | None = None, admin_key_file: Path | None = None) -> str:
    with pytest.raises(StartError) as caught:
        keys_of(environ, admin_key, admin_key_file)
    return str(caught.value)


def test_a_variable_is_an_ingest_key_for_the_service_in_its_name() -> None:
    (key,) = keys_of({"METRICS_API_KEY_MCP_GATEWAY": LONG, "PATH": "/bin", "METRICS_RATE_LIMIT": "5"})

    assert key == PreSharedKey("METRICS_API_KEY_MCP_GATEWAY", "mcp-gateway", frozenset({"ingest"}), digest(LONG), False)


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_", min_size=1, max_size=100))
def test_any_name_of_a_variable_gives_its_service_or_names_a_file(name: str) -> None:
    environ = {PREFIX + name: LONG}
    if name.endswith("_FILE") or name == "FILE":
        assert PREFIX + name in refusal_of(environ)
    else:
        assert [key.service for key in keys_of(environ)] == [name.lower().replace("_", "-")]


@pytest.mark.parametrize("value", ["", "  ", "\n"])
def test_an_empty_variable_counts_as_unset(value: str) -> None:
    assert keys_of({"METRICS_API_KEY_A": value, "METRICS_API_KEY_B_FILE": value}, Secret(value)) == []


def test_a_variable_with_file_reads_the_key_from_there(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{LONG}\n")

    (key,) = keys_of({"METRICS_API_KEY_AUTH_FILE": str(file), "METRICS_API_KEY_AUTH": ""})

    assert (key.service, key.digest) == ("auth", digest(LONG))


@pytest.mark.parametrize(("length", "weak"), [(31, True), (32, False)])
def test_a_key_is_weak_below_32_characters(length: int, weak: bool) -> None:
    assert [key.weak for key in keys_of({"METRICS_API_KEY_A": "x" * length})] == [weak]


def test_the_admin_key_has_both_scopes(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(LONG)

    for (key,) in (keys_of({}, Secret(LONG)), keys_of({}, None, file)):
        assert (key.service, key.scopes, key.digest) == ("admin", frozenset({"admin", "ingest"}), digest(LONG))


def test_a_name_given_as_a_key_and_as_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(LONG)

    assert refusal_of({"METRICS_API_KEY_A": "x" * 40, "METRICS_API_KEY_A_FILE": str(file)}) == (
        "METRICS_API_KEY_A_FILE: METRICS_API_KEY_A is set as well (must be one of them)"
    )


def test_two_variables_with_one_key_are_refused() -> None:
    assert refusal_of({"METRICS_API_KEY_A": LONG, "METRICS_API_KEY_B": LONG}) == (
        "METRICS_API_KEY_B: holds the same key as METRICS_API_KEY_A (each service needs its own)"
    )


def test_an_admin_key_that_is_a_services_key_is_refused() -> None:
    assert "admin_key: holds the same key as METRICS_API_KEY_A" in refusal_of({"METRICS_API_KEY_A": LONG}, Secret(LONG))


@pytest.mark.parametrize("name", ["", "FILE", "_FILE", "A B", "Ä", "X" * 101])
def test_a_name_that_is_no_service_is_refused(name: str) -> None:
    assert "names no service" in refusal_of({PREFIX + name: LONG})


@pytest.mark.parametrize(
    ("content", "what"), [(None, "cannot read"), (b" \n", "is empty"), (b"\xff\xfe", "is not text")]
)
def test_a_file_without_a_key_is_refused_without_saying_its_name(
    tmp_path: Path, content: bytes | None, what: str
) -> None:
    """The value of such a variable may be a key, put there by mistake."""
    file = tmp_path / LONG
    if content is not None:
        file.write_bytes(content)

    for message in (refusal_of({"METRICS_API_KEY_A_FILE": str(file)}), refusal_of({}, None, file)):
        assert what in message
        assert LONG not in message


def test_an_admin_key_given_in_both_ways_is_a_mistake_in_the_configuration_that_shows_no_key() -> None:
    with pytest.raises(ValidationError, match="must be one of them") as caught:
        ApiKeysConfig.model_validate({"admin_key": LONG, "admin_key_file": "/run/secrets/admin"})

    assert LONG not in str(caught.value)


def test_the_configuration_shows_no_key() -> None:
    config = ApiKeysConfig.model_validate({"admin_key": LONG})

    assert LONG not in repr(config) + str(config) + config.model_dump_json()
