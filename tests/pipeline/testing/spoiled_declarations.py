"""Faults in what a plugin says of a component type."""

from __future__ import annotations

from tests.pipeline.testing.spoiled import Fault
from tests.pipeline.testing.subjects import OfConnector, OfExtension, OfReceiver

FAULTS = [
    Fault(
        "the_plugin_declares_the_type_under_its_kind",
        'Declaration("shelf"',
        'Declaration("rack"',
        "declares no exporter 'shelf', but exporter 'rack'",
    ),
    Fault("the_plugin_declares_the_type_under_its_kind", "@hookimpl", "", "cannot be loaded as a plugin"),
    Fault(
        "the_signals_that_flow_through_it_are_declared",
        ", takes=frozenset({Signal.EVENTS})",
        "",
        "takes of the Declaration",
    ),
    Fault(
        "the_signals_that_flow_through_it_are_declared",
        ", gives=events),\n        Declaration",
        "),\n        Declaration",
        "gives of the Declaration",
        OfReceiver,
        "acme_rest",
    ),
    Fault(
        "the_signals_that_flow_through_it_are_declared",
        "takes=events, gives=events",
        "takes=events",
        "gives of the Declaration",
        OfConnector,
        "acme_rest",
    ),
    Fault(
        "the_signals_that_flow_through_it_are_declared",
        "RestExtension, ComponentConfig",
        "RestExtension, ComponentConfig, events",
        "takes of the Declaration",
        OfExtension,
        "acme_rest",
    ),
    Fault(
        "the_type_is_snake_case_and_its_module_is_called_after_it",
        'Declaration("shelf"',
        'Declaration("Shelf-2"',
        "is not snake_case",
        type="Shelf-2",
    ),
    Fault(
        "the_type_is_snake_case_and_its_module_is_called_after_it",
        "",
        "",
        "is not called after it",
        module="acme_shelves",
    ),
    Fault(
        "the_smallest_options_are_accepted_and_the_others_have_their_defaults",
        "wait: Duration = 30.0",
        "wait: Duration",
        "exporters.shelf.wait: ",
    ),
    Fault(
        "the_smallest_options_are_accepted_and_the_others_have_their_defaults",
        "class ShelfExporter",
        """
    @model_validator(mode="before")
    @classmethod
    def _wait(cls, values):
        return {"wait": 5, **values}


class ShelfExporter""",
        "let no validator change a default",
    ),
    Fault(
        "a_default_is_what_one_would_get_by_writing_it",
        "wait: Duration = 30.0",
        'wait: Duration = "30s"',
        "give the default as the value that it comes to",
    ),
    Fault(
        "a_default_is_what_one_would_get_by_writing_it",
        "wait: Duration = 30.0",
        "wait: Duration = -1.0",
        "is refused where it is written",
    ),
    Fault(
        "an_unknown_option_is_refused_by_its_name_and_place",
        "    path: str",
        '    model_config = ConfigDict(extra="ignore")\n    path: str',
        "takes the unknown option",
    ),
    Fault(
        "an_unknown_option_is_refused_by_its_name_and_place",
        "class ShelfExporter",
        """
    @model_validator(mode="before")
    @classmethod
    def _known(cls, values):
        if values.keys() - {"path"}:
            raise ValueError("no good")
        return values


class ShelfExporter""",
        "without its name and its line",
    ),
    Fault(
        "an_option_that_is_called_a_secret_is_one",
        "token: Secret | None",
        "token: str | None",
        "type it pipeline.Secret",
    ),
    Fault(
        "secrets_are_masked_wherever_options_are_shown",
        "class ShelfExporter",
        """
    def __repr__(self):
        return f"{self.token.get_secret_value()}"


class ShelfExporter""",
        "the secret token is shown in repr",
    ),
    Fault(
        "secrets_are_masked_wherever_options_are_shown",
        "class ShelfExporter",
        """
    @model_validator(mode="before")
    @classmethod
    def _copy(cls, values):
        return {**values, "path": str(values.get("token"))}


class ShelfExporter""",
        "the secret token is shown in",
    ),
    Fault("every_option_is_documented", '    """The file."""\n', "", "ShelfConfig.path: has no documentation"),
    Fault(
        "the_component_and_its_module_are_documented",
        '    """Puts events on a shelf."""\n',
        "",
        "the class ShelfExporter: has no docstring",
    ),
    Fault(
        "the_component_and_its_module_are_documented",
        '    """Where the shelf is."""\n',
        "",
        "the class ShelfConfig: has no docstring",
    ),
    Fault(
        "the_component_and_its_module_are_documented",
        '"""Puts events on a shelf.\n',
        'NOTHING = """\n',
        "the module acme_shelf: has no docstring",
    ),
    Fault(
        "the_smallest_yaml_that_works_is_shown_and_works",
        "      shelf:\n",
        "      rack:\n",
        "shows no YAML for 'shelf'",
    ),
    Fault(
        "the_smallest_yaml_that_works_is_shown_and_works", "        path: /tmp", "        paths: /tmp", "does not load"
    ),
]
