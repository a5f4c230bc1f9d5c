"""The result as a whole."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.component import Kind
from pipeline.data import Signal
from tests.pipeline.config.plugins import GRAPH, load, problems

FIVE_MISTAKES = """\
receivers:
  http:
    port: eighty

processors:
  decode:
  keep:

exporters:
  snd:
    endpoint: ${env:ENDPOINT}
  drop:

service:
  log: {level: loud}
  pipelines:
    events:
      receivers: [http]
      processors: [decode, keep]
      exporters: [drp]
"""


def test_five_mistakes_are_five_lines_and_each_has_its_place(tmp_path: Path) -> None:
    assert problems(tmp_path, FIVE_MISTAKES) == [
        "0.yaml:3: receivers.http.port: must be a valid integer, got 'eighty'",
        "0.yaml:10: exporters.snd: unknown type of exporter 'snd' (did you mean 'send'?)",
        "0.yaml:11: exporters.snd.endpoint: environment variable 'ENDPOINT' is not set "
        "(set it, or give a default: ${env:ENDPOINT:-default})",
        "0.yaml:15: service.log.level: must be 'debug', 'info', 'warning' or 'error', got 'loud'",
        "0.yaml:20: service.pipelines.events.exporters[0]: references exporter 'drp', which is not configured "
        "(did you mean 'drop'?)",
    ]


def test_a_configuration_is_what_the_files_say(tmp_path: Path) -> None:
    text = """
exporters: {drop/2: }
extensions: {wood: }
service: {extensions: [wood], pipelines: {events: {exporters: [drop, drop/2]}}}
"""
    found = load(tmp_path, GRAPH, text, environ={"A": "1"})
    (pipeline,) = found.pipelines
    assert (pipeline.id, pipeline.signal, pipeline.receivers) == ("events", Signal.EVENTS, ("push",))
    assert (pipeline.processors, pipeline.exporters) == (("keep",), ("drop", "drop/2"))
    assert list(found.components) == [
        (Kind.RECEIVER, "push"),
        (Kind.PROCESSOR, "keep"),
        (Kind.EXPORTER, "drop"),
        (Kind.EXPORTER, "drop/2"),
    ]
    assert found.components[Kind.EXPORTER, "drop/2"].declaration.type == "drop"
    assert [spec.id for spec in found.extensions] == ["wood"]
    assert found.environ == {"A": "1"}


SECRET = "exporters: {drop: , send: {endpoint: x, token: '${env:TOKEN}'}}\n"
SENT = f"{SECRET}service: {{pipelines: {{events: {{exporters: [drop, send]}}}}}}"


def test_the_digest_changes_with_what_runs_and_with_nothing_else(tmp_path: Path) -> None:
    def digest(text: str, **environ: str) -> str:
        return load(tmp_path, GRAPH, text, environ={"TOKEN": "hush", "OTHER": text, **environ}).digest

    same = digest(SENT)
    assert len(same) == 12
    assert digest(SENT.replace("token", "labels: [a, b], token")) == digest(
        SENT.replace("token", "labels: [b, a], token")
    )
    assert digest(f"# a comment\n\n{SENT}") == same
    assert digest(SENT.replace("token", "timeout: 5s, token")) == same
    assert digest(SENT.replace("token", "timeout: 6s, token")) != same
    assert digest(SENT, TOKEN="hush!") == same, "or a guess could be tried out against it"
    assert digest(SENT.replace("[drop, send]", "[send, drop]")) != same


def test_nothing_that_is_printed_by_accident_holds_a_secret(tmp_path: Path) -> None:
    found = load(tmp_path, GRAPH, SENT, environ={"TOKEN": "hush", "METRICS_API_KEY_X": "hush"})
    assert "hush" not in f"{found!r} {found} {found.components}"


lines = st.lists(
    st.sampled_from(
        [
            *GRAPH.splitlines(),
            "exporters: {send: {endpoint: 1}}",
            "extends: 0.yaml",
            "extensions: [wood]",
            "  extensions: [wood, {a: b}, null]",
            "    events: {receivers: push, exporters: [null, [drop]]}",
            "    ? [a]",
            "processors: ${env:X}",
            "connectors: {loop: ${env:X:-}}",
            "a: &a [*a]",
            "\t",
            "service: !!set {a}",
        ]
    ),
    max_size=9,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines)
def test_any_file_is_a_configuration_or_located_problems(tmp_path: Path, lines: list[str]) -> None:
    assert all(line.startswith(("0.yaml", "1.yaml")) for line in problems(tmp_path, GRAPH, "\n".join(lines)))
