"""The command line: `metrics-service COMMAND`. Errors are one line each; exit code 2 says that the user can mend them."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import click

from pipeline.cli_books import show_books
from pipeline.cli_dead_letters import dead_letter_commands
from pipeline.cli_doctor import doctor
from pipeline.cli_plugin import plugin
from pipeline.command_host import CommandHost
from pipeline.component import Kind
from pipeline.config.fields import ConfigModel, ListenerConfig
from pipeline.config.model import Configuration
from pipeline.config.schema import json_schema
from pipeline.config.secret_files import secret_files
from pipeline.config.show import print_config
from pipeline.draw import draw
from pipeline.errors import USER_MISTAKE, ConfigError, StartError
from pipeline.graph import Graph
from pipeline.hard_exit import HardExit
from pipeline.invocation import Invocation
from pipeline.local import fetch_local, local_url
from pipeline.logs import set_up_logs
from pipeline.masking import mask
from pipeline.permissions import give_up_rights, warn_if_others_read
from pipeline.registry import Registry
from pipeline.restarting import run_and_restart
from pipeline.service import Service
from pipeline.signals import run_until_signalled

HEALTH_SECONDS = 5
EXIT_SECONDS = 5.0
"""Seconds for the process to end after the service has stopped."""

_hard_exit = HardExit()
_has_run = False
"""Whether a service ran in this process."""


class _OneLineErrors(click.Group):
    """Shows what the service raises as one line a problem, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            for problem in error.problems:
                click.echo(f"error: {problem}", err=True)
            ctx.exit(USER_MISTAKE)
        except StartError as error:
            click.echo(f"error: {mask(str(error))}", err=True)
            ctx.exit(error.exit_code)


@click.group("metrics-service", cls=_OneLineErrors, no_args_is_help=True)
@click.version_option(version("mcp-metrics-service"), prog_name="metrics-service")
def cli() -> None:
    """Receive metrics, make them durable, deliver them."""


cli.add_command(dead_letter_commands)
cli.add_command(show_books)
cli.add_command(doctor)
cli.add_command(plugin)


@cli.command()
@click.option(
    "--accept-journal-reset",
    is_flag=True,
    help="Go on although the journal was lost or replaced and exporters are beyond it.",
)
@click.option(
    "--accept-database-reset",
    is_flag=True,
    help="Go on with a new database although the former one was lost.",
)
@click.option(
    "--reload", is_flag=True, help="For development: start again when code, configuration or a plugin changes."
)
@click.pass_obj
def run(invocation: Invocation, accept_journal_reset: bool, accept_database_reset: bool, reload: bool) -> None:
    """Run the service until SIGTERM or SIGINT."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # its default ends the process; nobody who sends it means that
    if reload:
        run_and_restart(invocation.config, invocation.overrides, invocation.env_file, invocation.plugins_dir)
        return
    configuration = invocation.load()
    set_up_logs(configuration.settings.log.level, configuration.settings.log.format)
    give_up_rights()
    if invocation.env_file:
        warn_if_others_read(invocation.env_file, logging.getLogger("service"))
    for _, file in secret_files(configuration):
        warn_if_others_read(file, logging.getLogger("service"))
    for broken in invocation.registry.broken:
        logging.getLogger("plugins").error("left out %s: %s", broken.source, broken.reason)
    # The committer and the store hand the GIL back and forth with the loop. Measured against the default of 5 ms, this is within the
    # noise on one core, and a few per cent at the most on two (one run each).
    sys.setswitchinterval(0.0005)
    service = Service(
        configuration, accept_journal_reset=accept_journal_reset, accept_database_reset=accept_database_reset
    )
    try:
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            try:
                runner.run(run_until_signalled(service, invocation.load_again, _hard_exit))
                _hard_exit.within(EXIT_SECONDS, 0)
            except BaseException as raised:
                reason = _reason(raised)
                known = isinstance(reason, StartError)
                code = reason.exit_code if isinstance(reason, StartError) else 1
                # Closing the loop waits for tasks and threads that plugins left behind.
                _hard_exit.within(EXIT_SECONDS, code, f"error: {reason}" if known else "")
                if reason is raised:
                    raise
                raise reason from None
    finally:
        _hard_exit.call_off()
        global _has_run
        _has_run = True


def _reason(raised: BaseException) -> BaseException:
    """The `StartError` in a group of exceptions, which is the reason to show; any other exception itself."""
    leaves = _leaves(raised) if isinstance(raised, BaseExceptionGroup) else ()
    return next((error for error in leaves if isinstance(error, StartError)), raised)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where the extra `fast` is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@cli.command()
@click.pass_obj
def validate(invocation: Invocation) -> None:
    """Check the configuration, without starting anything."""
    configuration = invocation.load()
    host = CommandHost(configuration)
    Graph(configuration, host, tuple(host.extensions))
    counts = {"pipeline": len(configuration.pipelines), "component": len(configuration.components)}
    click.echo("valid: " + ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items()))


@cli.command("print-config")
@click.pass_obj
def print_configuration(invocation: Invocation) -> None:
    """Print the configuration as it would run, with where each value came from. Secrets are masked."""
    click.echo(print_config(invocation.load()), nl=False)


@cli.command()
@click.pass_obj
def graph(invocation: Invocation) -> None:
    """Draw the graph of the configuration."""
    click.echo(draw(invocation.load()))


@cli.command()
@click.pass_obj
def components(invocation: Invocation) -> None:
    """List the component types that there are, and the plugins that they come from."""
    registry = invocation.registry
    for kind in Kind:
        for type_ in registry.types(kind):
            summary = (inspect.getdoc(registry.declarations[kind, type_].component) or "").partition("\n")[0]
            click.echo(f"{kind:<10} {type_:<16} {registry.sources[kind, type_]:<32} {summary}")
    for broken in registry.broken:
        click.echo(f"broken: {broken.source}: {broken.reason}", err=True)


@cli.command()
@click.pass_obj
def schema(invocation: Invocation) -> None:
    """Print the JSON Schema of configuration files, for editors."""
    click.echo(json.dumps(json_schema(invocation.registry), indent=2))


@cli.command()
@click.pass_obj
def healthcheck(invocation: Invocation) -> None:
    """Ask the running service of this configuration for its health. Exit code 0 if it would accept a push, 1 if not."""
    url = _health_url(invocation.load())
    try:
        click.echo(fetch_local(url, HEALTH_SECONDS))
    except OSError as error:
        click.echo(f"unhealthy: {url}: {error}", err=True)
        raise SystemExit(1) from None


def _health_url(configuration: Configuration) -> str:
    """The address of the first receiver that serves routes."""
    for (kind, _), spec in configuration.components.items():
        listener = cast("ConfigModel", spec.config)
        if kind is Kind.RECEIVER and isinstance(listener, ListenerConfig):
            return local_url(listener, "/health")
    raise StartError("the configuration has no receiver that listens", USER_MISTAKE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `metrics-service`, `migrate.py` and `create_api_key.py`."""
    invocation, rest = parse_common(sys.argv[1:] if arguments is None else arguments)
    if invocation.plugins_dir and not invocation.plugins_dir.is_dir():
        click.echo(f"error: --plugins-dir: {str(invocation.plugins_dir)!r} is not a folder", err=True)
        raise SystemExit(USER_MISTAKE)
    try:
        command_line(invocation.registry).main(rest, prog_name="metrics-service", obj=invocation)
    except SystemExit as ended:
        if _has_run and arguments is None:  # a plugin may have left threads behind
            _hard_exit.within(EXIT_SECONDS, ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise


def command_line(registry: Registry) -> click.Group:
    """All commands, the plugins' too, each with the options that every command has."""
    for command in registry.commands:
        if cli.commands.get(command.name or "", command) is not command:
            source = registry.command_sources.get(command.name or "", "a plugin")
            click.echo(
                f"error: left out the command {command.name!r} of {source}: metrics-service has a command of that name",
                err=True,
            )
        else:
            cli.add_command(command)
    _explain_common(cli)
    return cli


def parse_common(arguments: Sequence[str]) -> tuple[Invocation, list[str]]:
    """Take the options that every command has out of the arguments, wherever they stand."""
    parser = argparse.ArgumentParser(prog="metrics-service", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--env-file", type=Path)
    parser.add_argument("--plugins-dir", type=Path)
    common, rest = parser.parse_known_args(list(arguments))
    return Invocation(common.config, common.overrides, common.env_file, common.plugins_dir), rest


_COMMON = """\b
Options of every command:
  --config FILE       A configuration file, or development, staging or
                      production. Several are merged.
  --set PATH=VALUE    Override one value. Repeatable.
  --env-file FILE     Environment variables, as in a .env file.
  --plugins-dir DIR   Load loose plugin files from here.
"""


def _explain_common(command: click.Command) -> None:
    command.epilog = _COMMON
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _explain_common(each)


if __name__ == "__main__":
    main()
