"""The secrets of a configuration in text that another side wrote: masked in every form in which they are sent and quoted."""

from __future__ import annotations

import base64
import html
import json
import logging
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import ComponentConfig, Secret
from pipeline.logs import JsonFormatter, TextFormatter
from pipeline.masking import MASK, MASKER, Masker, keep_secret, keep_secrets, mask

SECRET = 'pa"ss/wörd+<&>%42'
LONG = "a-long-token-of-somebody-0123456789"


def masked(text: str, *secrets: str) -> str:
    masker = Masker()
    for secret in secrets:
        masker.keep(secret)
    return masker.mask(text)


FORMS = {
    "itself": SECRET,
    "bearer": f"Authorization: Bearer {SECRET}",
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "base64 for URLs": base64.urlsafe_b64encode(SECRET.encode()).decode(),
    "basic": "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode(),
    "basic with another name": "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode(),
    "percent-encoded": quote(SECRET, safe=""),
    "percent-encoded in lower case": re.sub("%..", lambda found: found[0].lower(), quote(SECRET, safe="")),
    "a path": quote(SECRET),
    "json": json.dumps({"key": SECRET}),
    "json with characters as they are": json.dumps({"key": SECRET}, ensure_ascii=False),
    "json in json": json.dumps(json.dumps({"key": SECRET})),
    "html": html.escape(SECRET),
    "python": repr([SECRET]),
    "hexadecimal": SECRET.encode().hex(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_secret_is_masked(form: str) -> None:
    shown = masked(f"401: you sent {FORMS[form]}!", SECRET)
    assert MASK in shown
    assert shown.startswith("401: you sent ")
    for part in (SECRET[4:], "wörd", FORMS[form][-8:]):
        assert part not in shown


@given(st.text(min_size=8), st.text(), st.text())
def test_any_secret_is_masked_in_any_text(secret: str, before: str, after: str) -> None:
    if len(secret.strip()) >= 8 and secret.strip() not in MASK * 9:
        assert secret.strip() not in masked(f"{before}{secret}{after}", secret).replace(MASK, "")


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("Bearer the-token-of-ours", "bad token 'the-token-of-ours'"),
        ("Basic " + base64.b64encode(b"user:the-password").decode(), "no user with the-password"),
        ("http://user:the%2Dpassword@proxy:3128", "user:the-password is unknown"),
        ("http://user:the%2Dpassword@proxy:3128", "Basic " + base64.b64encode(b"user:the-password").decode()),
        (LONG, f"cut to {LONG[:20]}"),
    ],
)
def test_the_secret_part_of_a_value_is_masked_alone(secret: str, text: str) -> None:
    shown = masked(text, secret)
    assert "the-password" not in shown
    assert "the-token" not in shown
    assert LONG[:16] not in shown
    assert MASK in shown


def test_other_text_stays_as_it_is() -> None:
    text = "HTTP 401: the token is unknown (a-long-walk)"
    assert masked(text, SECRET, LONG, "abc", "") == text


class Tls(ComponentConfig):
    """A part of options."""

    passphrase: Secret = Secret("passphrase-of-the-key")


class Options(ComponentConfig):
    """Options with secrets in every place."""

    token: Secret | None = None
    headers: Secret | dict[str, Secret] | None = None
    several: tuple[Secret, ...] = ()
    tls: Tls = Tls()


def test_all_secrets_of_options_are_found() -> None:
    headers = {"Authorization": Secret("Bearer one-of-them"), "x-tenant": Secret("production")}
    keep_secrets(Options(token=Secret("the-token-itself"), headers=headers, several=(Secret("one-of-several"),)))
    text = "the-token-itself one-of-them one-of-several passphrase-of-the-key"
    assert mask(text) == " ".join([MASK] * 4)
    assert mask("production.yaml") == f"{MASK}.yaml", "in text of others every value is masked"
    assert MASKER.mask_line("production.yaml") == "production.yaml", "our own lines stay readable"
    keep_secrets(Options(headers=Secret("x-api-key=a%20key%3Dof,x-tenant=staging1")))
    assert MASKER.mask_line("a key=of and staging1") == f"{MASK} and staging1"


def record(message: str, *args: object, error: Exception | None = None, **extra: object) -> logging.LogRecord:
    info = (type(error), error, None) if error else None
    made = logging.LogRecord("x", logging.INFO, "", 0, message, args, info)
    made.__dict__.update(extra)
    return made


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_a_log_line_shows_no_secret(formatter: logging.Formatter) -> None:
    keep_secret(SECRET)
    quoted = json.dumps({"you": SECRET})
    for each in (
        record("it says: %s", SECRET),
        record("it says: %s", quoted),
        record("it failed", error=ValueError(quoted)),
        record("it failed", reason=SECRET),
        record(f"it says {SECRET}"),
    ):
        line = formatter.format(each)
        assert "wörd" not in line
        assert "w\\u00f6rd" not in line
        assert MASK in line


def test_without_the_masker_a_line_shows_it() -> None:
    assert SECRET in TextFormatter().format(record("it says: %s", SECRET))
