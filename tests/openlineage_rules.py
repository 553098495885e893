"""Is an event one of OpenLineage: its own client's classes, by name, field and validator."""

from __future__ import annotations

import importlib
import pkgutil
import types
import typing
from datetime import datetime
from enum import Enum
from typing import Any

import attr
from openlineage.client import generated
from openlineage.client.event_v2 import RunEvent


def facet_classes() -> dict[str, type[Any]]:
    """Return the client's classes by the address of their schema."""
    found: dict[str, type[Any]] = {}
    for module in pkgutil.iter_modules(generated.__path__):
        for value in vars(importlib.import_module(f"{generated.__name__}.{module.name}")).values():
            if isinstance(value, type) and attr.has(value) and hasattr(value, "_get_schema"):
                found[value._get_schema()] = value
    return found


FACETS = facet_classes()


def check_event(event: dict[str, Any]) -> None:
    """Build the event anew from its JSON; raise where a field is unknown, missing or breaks its rule."""
    build(RunEvent, event)
    assert datetime.fromisoformat(event["eventTime"]).tzinfo is not None
    assert event["schemaURL"] == RunEvent._get_schema()


def build(kind: Any, value: Any) -> Any:
    """Return `value` as an instance of `kind`: a union, list, mapping, enumeration or attrs class."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return build(next(option for option in typing.get_args(kind) if option is not type(None)), value)
    if origin is list:
        return [build(typing.get_args(kind)[0], item) for item in value]
    if origin is dict:
        return {name: build_facet(item) if "_schemaURL" in item else item for name, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if isinstance(kind, type) and attr.has(kind):
        return build_class(kind, value)
    assert isinstance(value, kind), f"{value!r} is no {kind}"
    return value


def build_facet(value: dict[str, Any]) -> Any:
    """Return a facet as the class that its `_schemaURL` names."""
    kind = FACETS[value["_schemaURL"]]
    assert value["_producer"]
    return build_class(kind, {k: v for k, v in value.items() if not k.startswith("_")})


def build_class(kind: type[Any], value: dict[str, Any]) -> Any:
    """Return an attrs class made of JSON; its own validators look at the values."""
    fields = attr.fields_dict(attr.resolve_types(kind))
    given = {
        name: item for name, item in value.items() if name not in ("schemaURL",) and not name.startswith("_")
    }
    unknown = given.keys() - fields.keys()
    assert not unknown, f"{kind.__name__} has no {sorted(unknown)}"
    return kind(**{name: build(fields[name].type, item) for name, item in given.items()})
