"""What a command can get from the way it was called."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import StartError
from pipeline.invocation import Invocation
from plugins.extensions.database.extension import DatabaseExtension

NO_DATABASE = """\
receivers:
  http:
processors:
  validate:
  batch:
exporters:
  debug:
service:
  pipelines:
    events:
      receivers: [http]
      processors: [validate, batch]
      exporters: [debug]
"""


def test_a_missing_extension_is_named_by_the_type_that_the_configuration_takes(tmp_path: Path) -> None:
    path = tmp_path / "service.yaml"
    path.write_text(NO_DATABASE)
    with pytest.raises(StartError) as error:
        Invocation(config=[str(path)]).config_of(DatabaseExtension)
    assert str(error.value) == "the configuration has no extension of the type 'database' (add one)"
    assert error.value.exit_code == 2
