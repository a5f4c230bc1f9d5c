"""Reading what a caller of the admin routes asks for, from the query or from a JSON body."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import BeforeValidator, Field, ValidationError

from pipeline import Boolean, ConfigModel, Invalid, Malformed, Request


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a whole number of days")
    return value


Days = Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=36_500)]
"""A number of days, up to a century: dates before the year 1 cannot be written."""


class Preview(ConfigModel):
    """Parameters of a preview: one table, or all."""

    table_name: str | None = None


class Cleanup(Preview):
    """Parameters of a cleanup. Nothing is deleted unless `dry_run` is false."""

    dry_run: Boolean = True


class PolicyChange(ConfigModel):
    """Parameters of a change of a policy. What is not named stays; `retention_days: null` goes back to the default."""

    table: str
    retention_days: Days | None = None
    is_active: Boolean = True


ModelT = TypeVar("ModelT", bound=ConfigModel)


def read_parameters(request: Request, model: type[ModelT]) -> ModelT:
    """The parameters of a request; those of the path and the query win over the body's.

    Raises `Malformed` if the body is not JSON, `Invalid` that names each parameter which is unknown or wrong.
    """
    given: Any = {}
    if request.body:
        try:
            given = msgspec.json.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Malformed(f"body: must be JSON: {error}") from None
        except RecursionError:
            raise Malformed("body: is too deeply nested") from None
        if not isinstance(given, dict):
            raise Invalid("body: must be a JSON object")
    try:
        return model.model_validate({**given, **request.parameters})
    except ValidationError as error:
        raise Invalid("; ".join(_sentence(fault["loc"], fault["msg"], model) for fault in error.errors())) from None


def _sentence(place: tuple[int | str, ...], message: str, model: type[ConfigModel]) -> str:
    name = ".".join(map(str, place))
    if name not in model.model_fields:
        # What is required stands in the path.
        known = [known for known, field in model.model_fields.items() if not field.is_required()]
        return f"{name}: is unknown (known: {', '.join(known)})"
    message = message.removeprefix("Value error, ")
    return f"{name}: {message[0].lower()}{message[1:]}"
