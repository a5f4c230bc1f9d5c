"""Sizes, durations and booleans."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.config.fields import Boolean, Duration, Size, TLSConfig

size: TypeAdapter[int] = TypeAdapter(Size)
duration: TypeAdapter[float] = TypeAdapter(Duration)
boolean: TypeAdapter[bool] = TypeAdapter(Boolean)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10MB", 10_000_000),
        ("10MiB", 10_485_760),
        ("10", 10),
        ("1.5kb", 1500),
        (" 2 GiB ", 2**31),
        ("0.1GB", 10**8),
        ("7B", 7),
    ],
)
def test_a_size_is_bytes(text: str, expected: int) -> None:
    assert size.validate_python(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("30s", 30), ("5m", 300), ("1h", 3600), ("90d", 7_776_000), ("500ms", 0.5), ("1.5", 1.5)]
)
def test_a_duration_is_seconds(text: str, expected: float) -> None:
    assert duration.validate_python(text) == expected


@pytest.mark.parametrize("text", ["", "10MBs", "-1", "ten", "1e3", "10 M B"])
def test_what_is_no_size_says_what_is(text: str) -> None:
    with pytest.raises(ValidationError, match=r"must be a size, got .* \(for example 10MB"):
        size.validate_python(text)


@pytest.mark.parametrize("text", ["", "5 minutes", "-1s", "1e3", "inf", "5M"])
def test_what_is_no_duration_says_what_is(text: str) -> None:
    with pytest.raises(ValidationError, match=r"must be a duration, got .* \(for example 30s"):
        duration.validate_python(text)


@pytest.mark.parametrize("word", ["true", "Yes", "ON", "1", 1, True])
def test_words_for_true(word: object) -> None:
    assert boolean.validate_python(word) is True


@pytest.mark.parametrize("word", ["false", "No", "oFF", "0", 0, False])
def test_words_for_false(word: object) -> None:
    assert boolean.validate_python(word) is False


@pytest.mark.parametrize("word", ["", "maybe", "2", None])
def test_other_words_are_no_boolean(word: object) -> None:
    with pytest.raises(ValidationError, match="must be a boolean"):
        boolean.validate_python(word)


@given(
    st.integers(0, 10**15), st.sampled_from([("B", 1), ("KB", 10**3), ("KiB", 2**10), ("MiB", 2**20), ("TB", 10**12)])
)
def test_a_size_is_its_number_times_its_unit(number: int, unit: tuple[str, int]) -> None:
    assert size.validate_python(f"{number}{unit[0]}") == number * unit[1]


@given(st.integers(0, 10**6), st.sampled_from([("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: tuple[str, int]) -> None:
    assert duration.validate_python(f"{number}{unit[0]}") == number * unit[1]


@given(st.text() | st.from_regex(r"[0-9. ]{1,6}[a-zA-Z]{0,3}"))
def test_any_text_is_read_or_refused(text: str) -> None:
    for field in (size, duration, boolean):
        with suppress(ValidationError):
            assert field.validate_python(text) >= 0


@pytest.mark.parametrize(("there", "missing"), [("certificate", "key"), ("key", "certificate")])
def test_a_certificate_needs_its_key_and_a_key_its_certificate(there: str, missing: str) -> None:
    with pytest.raises(ValidationError, match=rf"has a {there} and no {missing} \(must have both or none\)"):
        TLSConfig.model_validate({there: "x.pem"})
    assert TLSConfig.model_validate({there: "x.pem", missing: "y.pem"}).key
    assert TLSConfig().key is None
