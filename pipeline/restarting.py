"""`run --reload`, for whoever develops: the service in a process of its own, started again when code, configuration or a plugin changes.

A start anew, and no SIGHUP: what Python has imported stays as it was. It loses nothing that was answered 200, as no stop does.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

import pipeline
from pipeline.config.files import SHIPPED, shipped_folder
from pipeline.errors import USER_MISTAKE, StartError

WATCHED = {".py", ".yaml", ".yml", ".sql"}
"""Of the folders that are watched, the files that are; beside the `--env-file`, whatever it is called."""
STOP_SECONDS = 15
"""How long the service may take to stop: longer than `service.stop_timeout`."""


def run_and_restart(
    config: Sequence[str], overrides: Sequence[str], env_file: Path | None, plugins_dir: Path | None
) -> None:
    """Run the service with these options until SIGINT or SIGTERM, and start it again after every change.

    One that does not start, for a mistake in what was changed, is started again after the next change. Raises `StartError` without the
    library that watches.
    """
    try:
        import watchfiles
    except ImportError:
        raise StartError(
            "run: --reload watches files with 'watchfiles', which is not installed (pip install watchfiles)",
            USER_MISTAKE,
        ) from None
    words = [sys.executable, "-m", "pipeline.cli", "run"]
    for name, values in (
        ("--config", config),
        ("--set", overrides),
        ("--env-file", [env_file]),
        ("--plugins-dir", [plugins_dir]),
    ):
        words += [word for value in values if value is not None for word in (name, str(value))]
    own = env_file.resolve() if env_file else None
    watchfiles.run_process(
        *_folders(config, env_file, plugins_dir),
        target=shlex.join(words),
        target_type="command",
        callback=lambda changes: _tell(sorted({path for _, path in changes})),
        watch_filter=lambda _, path: Path(path).suffix in WATCHED or Path(path) == own,
        debounce=400,  # milliseconds: an editor writes several files, or one in several steps
        sigint_timeout=STOP_SECONDS,
        recursive=False,
        ignore_permission_denied=True,
    )


def _tell(changed: list[str]) -> None:
    click.echo(f"changed: {', '.join(changed)}; starts again", err=True)


def _folders(config: Sequence[str], env_file: Path | None, plugins_dir: Path | None) -> list[Path]:
    """Folders rather than files, since many editors put a new file in the place of the old one."""
    checkout = Path(pipeline.__file__).resolve().parents[1]
    code = [folder for name in ("pipeline", "plugins") for folder in _with_inner(checkout / name)]
    files = [Path(name) for name in config if name not in SHIPPED] + [file for file in (env_file,) if file]
    loose = [plugins_dir] if plugins_dir else []
    return sorted({each.resolve() for each in (*code, shipped_folder(), *(file.parent for file in files), *loose)})


def _with_inner(folder: Path) -> Iterator[Path]:
    yield folder
    yield from (each for each in folder.rglob("*") if each.is_dir() and each.name != "__pycache__")
