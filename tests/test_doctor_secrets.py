"""`metrics-service doctor` on files that hold secrets, whichever option names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.leaks import secret
from tests.patients import Patient

SECRET = secret("a-secret-in-a-file-that-is-long-enough")
CLIENT = {
    "OTEL_OTLP_ENDPOINT": "https://127.0.0.1:1",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "secret",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY": "secret",
}

NAMED: dict[str, tuple[list[str], dict[str, str]]] = {
    "exporters.prometheus.key": (["exporters.prometheus.key=${file:secret}"], {}),
    "exporters.otlp.headers": (["exporters.otlp.headers=authorization=${file:secret}"], CLIENT),
    "exporters.otlp.headers.b": (["exporters.otlp.headers={a: x, b: 'Bearer ${file:secret}'}"], CLIENT),
    "exporters.otlp.tls.key": ([], CLIENT),
    "exporters.prometheus.tls.key": (["exporters.prometheus.tls={certificate: secret, key: secret}"], {}),
    "receivers.http.tls.key": (["receivers.http.tls={certificate: secret, key: secret}"], {}),
}
"""The option that names the file `secret`, by these settings and variables."""


@pytest.mark.parametrize("mode", [0o640, 0o644])
@pytest.mark.parametrize("where", NAMED)
def test_a_secret_that_everybody_can_read_is_found_by_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str, mode: int
) -> None:
    patient = Patient(tmp_path, monkeypatch, capsys)
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(mode)
    settings, variables = NAMED[where]
    patient.settings += settings
    patient.variables |= variables
    readable = [each for each in patient.findings() if each["what"] == "every user of this machine can read secret"]
    named = {each["where"] for each in readable}
    others = {"exporters.otlp.tls.key"} if variables is CLIENT else set()
    assert named == ({where} | others if mode == 0o644 else set())


def test_what_is_no_secret_may_be_read_by_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = Patient(tmp_path, monkeypatch, capsys)
    (tmp_path / "name").write_text("a-service")
    (tmp_path / "name").chmod(0o644)
    patient.settings.append("exporters.prometheus.host=${file:name}")
    assert [each for each in patient.findings() if "can read name" in each["what"]] == []
