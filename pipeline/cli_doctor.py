"""`metrics-service doctor`: the production checklist, held against the configuration and the machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import chain

import click

from pipeline.doctor import examine
from pipeline.findings import Finding, Item, Level, look_at_mode
from pipeline.invocation import Invocation


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list of all findings, for programs.")
@click.pass_obj
def doctor(invocation: Invocation, as_json: bool) -> None:
    """Hold the production checklist against this configuration and this machine.

    Runs beside the service or without it, as its user, and changes nothing. Exit code 1 if there is a problem; warnings are for a person
    to judge.
    """
    env_file = invocation.env_file
    own = look_at_mode("--env-file", env_file, Item.KEYS) if env_file else ()
    found = list(chain(own, examine(invocation.load())))
    click.echo(json.dumps([asdict(each) for each in found], indent=2) if as_json else _table(found))
    if any(each.level is Level.PROBLEM for each in found):
        raise SystemExit(1)


def _table(found: list[Finding]) -> str:
    return "\n".join(f"{each.level:<8} {each.item:<11} {each}" for each in found)
