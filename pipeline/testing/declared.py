"""What a plugin says of a component type: its names, its options, its documentation. Nothing is constructed."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline import ComponentConfig, Kind, Signal
from pipeline.config.model import ComponentSpec
from pipeline.config.problems import joined
from pipeline.config.show import print_config
from pipeline.errors import ConfigError
from pipeline.testing.secrets import careless_places, places, planted, secret_places
from pipeline.testing.subject import Subject, check, fail

_SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_UNKNOWN = "no_such_option"
_HUSH = "hush-this-is-a-secret"
_FLOWS: dict[Kind, tuple[str, ...]] = {
    Kind.RECEIVER: ("gives",),
    Kind.PROCESSOR: ("takes",),
    Kind.EXPORTER: ("takes",),
    Kind.CONNECTOR: ("takes", "gives"),
    Kind.EXTENSION: (),
}


class Declared(Subject):
    """Checks what is declared."""

    def test_the_plugin_declares_the_type_under_its_kind(self) -> None:
        """The hook `declare_components` returns it."""
        self.declaration()

    def test_the_signals_that_flow_through_it_are_declared(self) -> None:
        """`takes` and `gives` fit its kind."""
        declaration = self.declaration()
        for name in ("takes", "gives"):
            signals, flows = getattr(declaration, name), name in _FLOWS[self.kind]
            check(
                bool(signals) == flows and signals <= frozenset(Signal),
                f"{name} of the Declaration of {self.kind} {self.type!r} is {set(signals) or '{}'}"
                f" (must be {'a frozenset of one Signal or more' if flows else 'left out'})",
            )

    def test_the_type_is_snake_case_and_its_module_is_called_after_it(self) -> None:
        """Who reads a configuration finds the code."""
        check(
            _SNAKE_CASE.fullmatch(self.type),
            f"the type {self.type!r} is not snake_case (must match {_SNAKE_CASE.pattern})",
        )
        module = self.declaration().component.__module__
        named = re.compile(rf"(.*_)?{re.escape(self.type)}(_.*)?")
        check(
            any(named.fullmatch(part) for part in module.split(".")),
            f"{self.kind} {self.type!r} is in the module {module!r}, which is not called after it"
            f" (call the module or its package {self.type!r}, or something with it: 'metrics_service_{self.type}')",
        )

    def test_the_smallest_options_are_accepted_and_the_others_have_their_defaults(self, tmp_path: Path) -> None:
        """Whoever writes only what is required gets what the documentation shows as defaults."""
        spec, given = self._loaded(tmp_path), self.options(tmp_path)
        for name, field in spec.declaration.config.model_fields.items():
            if (field.alias or name) not in given:
                value, default = getattr(spec.config, name), field.get_default(call_default_factory=True)
                check(
                    value == default,
                    f"the option {name} is {value!r} where nobody writes it, and its default is {default!r}"
                    " (let no validator change a default)",
                )

    def test_a_default_is_what_one_would_get_by_writing_it(self, tmp_path: Path) -> None:
        """pydantic does not check defaults: `Duration = "30s"` would stay text."""
        config = self._loaded(tmp_path).config
        fields = type(config).model_fields.items()
        written = {field.alias or name: getattr(config, name) for name, field in fields}
        try:
            again = type(config).model_validate(written)
        except ValidationError as error:
            fail(f"a default of {self.type!r} is refused where it is written: {error} (give it a value that is right)")
        for name, _ in fields:
            value, checked = getattr(config, name), getattr(again, name)
            check(
                value == checked,
                f"the default of the option {name} is {value!r}, and written it is {checked!r}"
                " (give the default as the value that it comes to)",
            )

    def _loaded(self, folder: Path) -> ComponentSpec:
        """The component as the loader of configurations gives it."""
        given = self.options(folder)
        try:
            return self.load(folder, given).configured[self.kind, self.type]
        except ConfigError as error:
            fail(
                f"{self.kind} {self.type!r} is refused with the options {dict(given)}:\n{error}\n"
                "(give each field of its model a default, or return those that are required from the method options of the test class)"
            )

    def test_an_unknown_option_is_refused_by_its_name_and_place(self, tmp_path: Path) -> None:
        """A typing error is not silently the default."""
        try:
            self.load(tmp_path, {**self.options(tmp_path), _UNKNOWN: 1})
        except ConfigError as error:
            path = f"{self.kind}s.{self.type}.{_UNKNOWN}"
            check(
                any(each.path == path and each.mark.line for each in error.problems),
                f"the unknown option {_UNKNOWN} is refused without its name and its line: {error}"
                " (leave unknown keys to pydantic, with the model_config of ComponentConfig)",
            )
        else:
            fail(
                f"{self.declaration().config.__name__} takes the unknown option {_UNKNOWN}"
                ' (derive it from ComponentConfig, and do not change extra="forbid")'
            )

    def test_an_option_that_is_called_a_secret_is_one(self) -> None:
        """What is text shows in logs, in `--print-config` and in errors."""
        careless = [joined(steps) for steps in careless_places(self.declaration().config)]
        check(not careless, f"{', '.join(careless)}: is called a secret and is plain text (type it pipeline.Secret)")

    def test_secrets_are_masked_wherever_options_are_shown(self, tmp_path: Path) -> None:
        """In `repr`, in `str` and in the printed configuration, and in what is said when they are refused."""
        for steps in secret_places(self.declaration().config):
            try:
                configuration = self.load(tmp_path, planted(self.options(tmp_path), steps, _HUSH))
            except ConfigError as error:
                shown = {"an error": str(error)}
            else:
                config = configuration.configured[self.kind, self.type].config
                shown = {
                    "repr()": repr(config),
                    "str()": str(config),
                    "the printed configuration": print_config(configuration),
                }
            for where, text in shown.items():
                check(
                    _HUSH not in text,
                    f"the secret {joined(steps)} is shown in {where} (copy it into no other field, and override no __repr__)",
                )

    def test_every_option_is_documented(self) -> None:
        """The text below a field is its documentation."""
        config = self.declaration().config
        silent = [
            f"{model.__name__}.{name}"
            for model in {config: None, **dict.fromkeys(_models(config))}
            for name, field in model.model_fields.items()
            if not (field.description or "").strip()
        ]
        check(not silent, f"{', '.join(silent)}: has no documentation (write a docstring below the field)")

    def test_the_component_and_its_module_are_documented(self) -> None:
        """A docstring of its own, for the class, its options and the module."""
        declaration = self.declaration()
        explained: dict[str, Any] = {
            f"the class {declaration.component.__name__}": declaration.component,
            f"the module {declaration.component.__module__}": sys.modules[declaration.component.__module__],
        }
        if declaration.config is not ComponentConfig:
            explained[f"the class {declaration.config.__name__}"] = declaration.config
        silent = [name for name, one in explained.items() if not self.said(one)]
        check(not silent, f"{', '.join(silent)}: has no docstring (say in a sentence what it is for)")

    def test_the_smallest_yaml_that_works_is_shown_and_works(self, tmp_path: Path) -> None:
        """In the docstring of the module with the hooks, indented by four; it is laid over the shipped configuration."""
        shown = next((text for text in _indented(self.said(self.module())) if self._configures(text)), None)
        if shown is None:
            fail(
                f"the docstring of {self.module().__name__} shows no YAML for {self.type!r}"
                f" (write the least that works, indented by four: '{self.kind}s:', and below it '  {self.type}:')"
            )
        try:
            self.load_yaml(tmp_path, "development", shown)
        except ConfigError as error:
            fail(f"the YAML in the docstring of {self.module().__name__} does not load:\n{error}\n{shown}")

    def _configures(self, text: str) -> bool:
        try:
            tree = yaml.safe_load(text)
        except yaml.YAMLError:
            return False
        section = tree.get(f"{self.kind}s") if isinstance(tree, dict) else None
        return isinstance(section, dict) and self.type in section


def _models(config: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The models inside of a model."""
    for _, found in places(config):
        yield from (one for one in found if isinstance(one, type) and issubclass(one, BaseModel))


def _indented(text: str) -> list[str]:
    """The blocks of a docstring that are indented, without the indentation."""
    found = re.findall(r"(?:^    .*\n?(?:\n(?=    ))?)+", text, re.MULTILINE)
    return [textwrap.dedent(each) for each in found]
