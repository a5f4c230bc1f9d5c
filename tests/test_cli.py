"""The command line, as a person types it."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.cli import main
from tests.running import free_port, process, running

ROOT = Path(__file__).parents[1]

FIVE_MISTAKES = """\
receivers:
  http:
    prot: 8890
processors:
  auth:
  validate:
  batch:
    size: many
exporters:
  sqllite:
extensions:
  database:
    path: ${env:NOT_SET_ANYWHERE}
  api_keys:
service:
  extensions: [database, api_keys]
  pipelines:
    events:
      receivers: [htpp]
      processors: [auth, validate, batch]
      exporters: [sqllite]
"""


class Result(NamedTuple):
    """What a command has left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `metrics-service` with these arguments, in an empty folder and an environment that configures nothing."""
    for name in os.environ:
        if name.startswith(("METRICS_", "SQLITE_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Result(int(exit_.value.code or 0), out, err)

    return run


def test_validate_says_all_that_is_wrong_with_file_line_and_place(command: Command) -> None:
    Path("five.yaml").write_text(FIVE_MISTAKES)
    result = command("validate", "--config", "five.yaml")
    assert (result.code, result.out) == (2, "")
    lines = result.err.splitlines()
    assert [re.match(r"error: five\.yaml:(\d+): ([\w.\[\]]+): ", line).groups() for line in lines] == [  # type: ignore[union-attr]
        ("3", "receivers.http.prot"),
        ("8", "processors.batch.size"),
        ("10", "exporters.sqllite"),
        ("13", "extensions.database.path"),
        ("19", "service.pipelines.events.receivers[0]"),
    ]
    for name in ("'port'", "'many'", "'sqlite'", "'NOT_SET_ANYWHERE'", "'http'"):
        assert name in result.err


@pytest.mark.parametrize("config", ["development", "staging", "production"])
def test_validate_touches_nothing(command: Command, config: str, tmp_path: Path) -> None:
    result = command("validate", "--config", config)
    assert result.code == 0
    assert result.out.startswith("valid: ")
    assert list(tmp_path.iterdir()) == []


def test_validate_counts_in_the_singular_too(command: Command) -> None:
    assert re.fullmatch(r"valid: 2 pipelines, \d+ components\n", command("validate").out)
    without = command("validate", "--set", "exporters.prometheus.enabled=false").out
    assert re.fullmatch(r"valid: 1 pipeline, \d+ components\n", without)


def test_validate_finds_a_certificate_without_its_key_and_names_variables(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICS_TLS_CERTIFICATE", "cert.pem")
    monkeypatch.setenv("METRICS_SERVICE_PORT", "abc")
    result = command("validate", "--config", "production")
    assert result.code == 2
    port, tls = sorted(result.err.splitlines(), key=lambda line: "tls" in line)
    assert port.endswith(": receivers.http.port: must be a valid integer, got 'abc' (from METRICS_SERVICE_PORT)")
    assert tls.endswith(": receivers.http.tls: has a certificate and no key (must have both or none)")


@pytest.mark.parametrize("words", [["validate"], ["keys", "list"], ["components"], ["run"]])
def test_a_folder_of_plugins_that_is_none_is_a_mistake_of_every_command(command: Command, words: list[str]) -> None:
    result = command(*words, "--plugins-dir", "nowhere")
    assert result == (2, "", "error: --plugins-dir: 'nowhere' is not a folder\n")


def test_common_options_may_stand_anywhere(command: Command) -> None:
    Path("own.yaml").write_text("extends: development\n")
    Path("own.env").write_text("SQLITE_DB_PATH=from-the-file.db\n")
    config, one, two = ["--config", "own.yaml"], ["--set", "receivers.http.port=1234"], ["--env-file=own.env"]
    found = {
        command(*config, *one, *two, "print-config"),
        command("print-config", *config, *one, *two),
        command(*two, "print-config", *one, *config),
    }
    (result,) = found
    assert result.code == 0
    assert "port: 1234  # --set" in result.out
    assert "path: from-the-file.db" in result.out
    for arguments in (
        ["keys", *config, "list", *two],
        [*two, "keys", "list", *config],
        ["keys", "list", *config, *two],
    ):
        result = command(*arguments)
        assert (result.code, result.err) == (2, "error: there is no database from-the-file.db yet\n")
    assert not Path("from-the-file.db").exists()
    made = command("keys", "create", "--service", "a", *config, *two)
    assert made.out.startswith("database: from-the-file.db\n")
    assert Path("from-the-file.db").exists()


def test_print_config_shows_where_a_value_came_from_and_no_secret(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICS_ADMIN_KEY", "nobody-may-read-this")
    monkeypatch.setenv("BATCH_SIZE", "77")
    result = command("print-config", "--config", "production")
    assert result.code == 0
    assert "nobody-may-read-this" not in result.out + result.err
    assert re.search(r"size: 77  # .*BATCH_SIZE", result.out)
    assert re.search(r"body_timeout: 10  # default", result.out)


def test_graph_draws_the_way_of_a_push(command: Command) -> None:
    result = command("graph", "--config", "production")
    assert result.code == 0
    way = ["http", "auth", "rate_limit", "validate", "batch", "sqlite"]
    (line,) = [line for line in result.out.splitlines() if "http" in line]
    assert [word for word in re.findall(r"\w+", line) if word in way] == way
    assert "debug" not in line, "what is disabled is not drawn"


def test_components_lists_what_there_is_and_what_is_broken(command: Command) -> None:
    Path("plugins").mkdir()
    Path("plugins/bad.py").write_text("import nothing_of_that_name\n")
    result = command("components", "--plugins-dir", "plugins")
    assert result.code == 0
    kinds = {tuple(line.split()[:2]) for line in result.out.splitlines()}
    assert {("receiver", "http"), ("processor", "batch"), ("exporter", "sqlite"), ("extension", "database")} <= kinds
    assert result.err.startswith("broken: plugins/bad.py: ModuleNotFoundError")


def test_schema_is_a_json_schema_of_every_component(command: Command) -> None:
    result = command("schema")
    assert result.code == 0
    schema = json.loads(result.out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"receivers", "processors", "exporters", "extensions", "service"} <= set(schema["properties"])
    assert '"max_request_size"' in result.out


def test_version_and_unknown_words(command: Command) -> None:
    assert command("--version") == (0, f"metrics-service, version {version('mcp-metrics-service')}\n", "")
    for arguments, named in [
        (["nonsense"], "nonsense"),
        (["validate", "--nonsense"], "--nonsense"),
        (["validate", "--set", "nonsense"], "nonsense"),
        (["validate", "--config", "nonsense.yaml"], "nonsense.yaml"),
        (["validate", "--env-file", "nonsense.env"], "nonsense.env"),
        (["validate", "--config"], "--config"),
    ]:
        result = command(*arguments)
        assert result.code == 2, arguments
        assert named in result.err


def test_keys_are_made_listed_and_revoked(command: Command) -> None:
    made = command("keys", "create", "--service", "mcp-gateway", "--rate-limit", "7")
    assert made.code == 0
    (key,) = set(re.findall(r"mcp_metrics_\S+", made.out))
    listed = command("keys", "list")
    assert "mcp-gateway" in listed.out
    assert key not in listed.out
    assert command("keys", "revoke", "1").code == 0
    assert command("keys", "revoke", "2").code == 2
    assert re.search(r"mcp-gateway +ingest +7 +no ", command("keys", "list").out)


def test_migrate_goes_up_and_down(command: Command) -> None:
    assert "not there yet" in command("migrate", "status").out
    assert not Path("dev_metrics.db").exists()
    assert "applied 0001_metrics" in command("migrate", "up").out
    assert "to be applied: nothing" in command("migrate", "status").out
    assert command("migrate", "down", "1").code == 0
    assert "to be applied: nothing" not in command("migrate", "status").out
    assert command("migrate", "up").code == 0


def test_healthcheck_asks_the_service_of_the_configuration(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICS_SERVICE_PORT", str(free_port()))
    nobody = command("healthcheck", "--config", "production")
    assert (nobody.code, nobody.out) == (1, "")
    assert nobody.err.startswith("unhealthy: ")
    monkeypatch.delenv("METRICS_SERVICE_PORT")
    with process(tmp_path) as (_, base):
        healthy = command(
            "healthcheck", "--config", "production", "--set", f"receivers.http.port={base.split(':')[-1]}"
        )
        assert (healthy.code, json.loads(healthy.out)["status"]) == (0, "healthy")


def script(name: str, *arguments: str, folder: Path, **variables: str) -> str:
    """What a script of the repository writes, run in that folder."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("METRICS_", "SQLITE_"))}
    done = subprocess.run(
        [sys.executable, ROOT / name, *arguments],
        cwd=folder,
        env={**environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.anyio
async def test_the_scripts_use_the_database_of_the_service(tmp_path: Path) -> None:
    database = {"SQLITE_DB_PATH": str(tmp_path / "data" / "metrics.db")}
    assert f"database: {database['SQLITE_DB_PATH']}" in script("migrate.py", "status", folder=tmp_path, **database)
    assert "applied 0001_metrics" in script("migrate.py", "up", folder=tmp_path, **database)
    made = script("create_api_key.py", folder=tmp_path, **database)
    (key,) = set(re.findall(r"mcp_metrics_\S+", made))
    assert f"X-API-Key: {key}" in made
    async with running(tmp_path, **database) as service:
        answer = await service.client.get("/rate-limit", headers={"X-API-Key": key})
        assert (answer.status_code, answer.json()["service"]) == (200, "default")
        # And while the service runs.
        made = script("create_api_key.py", "--service", "other", folder=tmp_path, **database)
        (key,) = set(re.findall(r"mcp_metrics_\S+", made))
        answer = await service.client.get("/rate-limit", headers={"X-API-Key": key})
        assert (answer.status_code, answer.json()["service"]) == (200, "other")


def test_without_variables_the_scripts_use_the_database_of_development(tmp_path: Path) -> None:
    script("create_api_key.py", folder=tmp_path)
    with closing(sqlite3.connect(tmp_path / "dev_metrics.db")) as connection:
        assert connection.execute("SELECT service_name, scopes FROM api_keys").fetchall() == [("default", "ingest")]
