"""What a key looks like."""

from __future__ import annotations

import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from plugins.extensions.api_keys.keys import digest, has_good_checksum, new_key, new_public_id, owner


def test_a_new_key_has_the_form_that_the_contract_publishes() -> None:
    assert re.fullmatch(r"mcp_metrics_[A-Za-z0-9_-]{43}[A-Za-z0-9]{6}", new_key())


def test_no_two_keys_are_alike() -> None:
    assert len({new_key() for _ in range(1000)}) == 1000


def test_a_new_key_has_a_good_checksum() -> None:
    assert all(has_good_checksum(new_key()) for _ in range(1000))


def test_the_checksum_is_the_same_in_every_version() -> None:
    assert has_good_checksum("mcp_metrics_" + "A" * 43 + "4PzfzN")


@given(st.integers(0, 60), st.characters(codec="ascii"))
def test_one_wrong_character_is_noticed(place: int, wrong: str) -> None:
    key = new_key()
    typed = key[:place] + wrong + key[place + 1 :]

    assert has_good_checksum(typed) == (typed == key)


@given(st.text())
def test_no_text_passes_for_a_key(text: str) -> None:
    assert not has_good_checksum(text)
    assert not has_good_checksum("mcp_metrics_" + text)
    assert not has_good_checksum(("mcp_metrics_" + text).ljust(61, "é"))


def test_a_key_that_is_cut_off_or_repeated_is_noticed() -> None:
    key = new_key()

    assert not has_good_checksum(key[:-1])
    assert not has_good_checksum(key + key[-1])
    assert not has_good_checksum(key + "\n")


@given(st.text(st.characters()))
def test_the_digest_is_the_sha256_of_the_text_whatever_it_holds(text: str) -> None:
    assert digest(text) == hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def test_a_public_id_is_random() -> None:
    ids = {new_public_id() for _ in range(100)}
    assert len(ids) == 100
    assert {len(each) for each in ids} == {12}


def test_the_owner_of_idempotency_keys_is_that_of_earlier_versions() -> None:
    assert owner("0123456789abcdef") == "01234567"
