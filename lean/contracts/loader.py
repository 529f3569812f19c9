"""Strict YAML onto frozen dataclasses: keys map one to one, all else is an error that names its place.

`load(Kind, path)` reads a document whose first key is `schema: <Kind.SCHEMA>`. Unknown, missing,
duplicate and ill-typed keys, tags, aliases and anchors, too long and too deep documents all raise
`ContractError`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lean.errors import ContractError

MAX_BYTES = 1 << 20
MAX_DEPTH = 16

T = TypeVar("T")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that also refuses duplicate keys, aliases, anchors, explicit tags and deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _at(event.start_mark, "aliases and anchors are not allowed; write the value out")
        if getattr(event, "tag", None):
            raise _at(event.start_mark, f"tag {event.tag!r} is not allowed; remove it")
        if self.depth >= MAX_DEPTH:
            raise _at(event.start_mark, f"nested deeper than {MAX_DEPTH} levels")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _at(key.start_mark, f"expected a name as key, got {key.value!r}")
            if key.value in seen:
                raise _at(key.start_mark, f"duplicate key {key.value!r}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _at(mark: yaml.Mark, problem: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"line {mark.line + 1}: {problem}")


def read_yaml(path: Path) -> Any:
    """The plain data of one YAML document. Errors: `ContractError` naming the file and the line."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ContractError(f"{path}: cannot be read: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise ContractError(f"{path}: {len(text)} bytes; a configuration file has at most {MAX_BYTES}")
    try:
        return yaml.load(text.decode("utf-8"), _StrictLoader)
    except UnicodeDecodeError as error:
        raise ContractError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ContractError(f"{path}: {line}{error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ContractError(f"{path}: {error}") from None


def load(kind: type[T], path: Path) -> T:
    """Read `path` as one `kind`, a frozen dataclass with a `SCHEMA` such as `contract/v1`.

    Errors: `ContractError("profiles/bench/x.yaml: decode_tokens: expected int, got 'a'")`.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ContractError(f"{path}: expected a mapping, got {_shown(data)}")
    return from_data(kind, data, str(path))


def from_data(kind: type[T], data: dict[str, Any], origin: str) -> T:
    """Build one `kind` from plain data that carries its schema. `origin` opens every message."""
    return typing.cast(T, _build(kind, data, origin, ""))


def to_data(value: Any) -> Any:
    """Plain data of a contract dataclass, its `schema` first; the inverse of `from_data`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        schema = getattr(value, "SCHEMA", None)
        head = {"schema": schema} if schema else {}
        return head | {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_data(item) for item in value]
    if isinstance(value, dict):
        return {key: to_data(item) for key, item in value.items()}
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build(kind: type, data: dict[str, Any], origin: str, where: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    schema = getattr(kind, "SCHEMA", None)  # a document inside another keeps its own schema
    if schema is not None:
        data = dict(data)
        found = data.pop("schema", None)
        if found != schema:
            raise _wrong(origin, _join(where, "schema"), f"expected {schema!r}, got {_shown(found)}")
    for name in data:
        if name not in fields:
            raise _wrong(origin, _join(where, name), f"unknown key; known: {', '.join(fields)}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(_hints(kind)[name], data[name], origin, _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _wrong(origin, _join(where, name), "missing")
    try:
        return kind(**values)
    except ValueError as error:  # raised by a dataclass's own __post_init__, which names its field
        raise ContractError(f"{origin}: {_join(where, str(error))}") from None


def _convert(hint: Any, value: Any, origin: str, where: str) -> Any:
    if hint is Any:
        return value
    base, args = typing.get_origin(hint), typing.get_args(hint)
    if base in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]
        return _convert(next((a for a in kinds if type(value) is a), kinds[0]), value, origin, where)
    if base is typing.Literal:
        if value not in args or isinstance(value, bool) != isinstance(args[0], bool):
            raise _wrong(origin, where, f"expected one of {', '.join(map(str, args))}, got {_shown(value)}")
        return value
    if base is tuple:
        if not isinstance(value, list):
            raise _wrong(origin, where, f"expected a list, got {_shown(value)}")
        if _all_plain(args[0], value):
            return tuple(value)
        return tuple(_convert(args[0], item, origin, f"{where}[{i}]") for i, item in enumerate(value))
    if base is dict:
        if not isinstance(value, dict):
            raise _wrong(origin, where, f"expected a mapping, got {_shown(value)}")
        return {key: _convert(args[1], item, origin, _join(where, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _wrong(origin, where, f"expected a mapping, got {_shown(value)}")
        return _build(typing.cast(type, hint), value, origin, where)
    return _scalar(hint, value, origin, where)


def _all_plain(hint: Any, values: list[Any]) -> bool:
    """Whether all are whole numbers or text as the hint has them: a run record holds thousands in a row."""
    alternatives = typing.get_origin(hint) in (typing.Union, types.UnionType)
    allowed = set(typing.get_args(hint)) if alternatives else {hint}
    return allowed <= {int, str, types.NoneType} and set(map(type, values)) <= allowed


def _scalar(hint: type, value: Any, origin: str, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        raise _wrong(origin, where, f"expected {hint.__name__}, got {_shown(value)}")
    return value


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _wrong(origin: str, where: str, problem: str) -> ContractError:
    return ContractError(f"{origin}: {where}: {problem}")
