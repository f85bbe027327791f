"""Protocol buffers' text format (``config.pbtxt``), read with the schema of a pydantic model.

The message types are built at run time from the model's fields, so that TOML, JSON and text format share one schema;
protobuf's own library parses the text. :class:`Written` marks fields with another notation in text format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from fastinfer.base.near import suggestion

_PACKAGE = "fastinfer"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {bool: _Field.TYPE_BOOL, int: _Field.TYPE_INT64, float: _Field.TYPE_DOUBLE, str: _Field.TYPE_STRING}
_UNKNOWN = re.compile(r'Message type "([^"]+)" has no field named "([^"]+)"')
_POSITION = re.compile(r"^\d+:\d+ : ")


class PbtxtError(Exception):
    """The text does not follow the schema.

    Attributes:
        line: counted from 1; 0 if it is not known.
        unknown: the name of an unknown field, or "".
    """

    def __init__(self, message: str, line: int, unknown: str = "") -> None:
        super().__init__(message)
        self.line = line
        self.unknown = unknown


@dataclass(frozen=True)
class Written:
    """In ``Annotated``: the notation of a field in text format.

    Attributes:
        types: the type by the field's name or alias.
    """

    types: tuple[tuple[str, Any], ...]


def parse(text: str, schema: type[BaseModel]) -> dict[str, Any]:
    """Parse ``text`` to the dict that ``schema`` validates. PbtxtError."""
    message = _message_class(schema)()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise _explained(str(error), error.GetLine() or 0, message) from None
    except RecursionError:
        raise PbtxtError("is nested too deeply", 0) from None
    return _to_dict(message)


def _explained(text: str, line: int, message: Message) -> PbtxtError:
    text = _POSITION.sub("", text.splitlines()[0])
    unknown = _UNKNOWN.search(text)
    if unknown is None:
        return PbtxtError(text.rstrip(".").replace(f"{_PACKAGE}.", ""), line)
    known = message.DESCRIPTOR.file.pool.FindMessageTypeByName(unknown[1]).fields_by_name
    return PbtxtError(f"unknown field '{unknown[2][:60]}'{suggestion(unknown[2], known)}", line, unknown[2])


# --- The schema -------------------------------------------------------------------------------------------------------


@cache
def _message_class(schema: type[BaseModel]) -> type[Message]:
    # One class per schema, kept for the life of the process; its own pool avoids conflicts of names.
    file = descriptor_pb2.FileDescriptorProto(name=f"{schema.__name__}.proto", package=_PACKAGE, syntax="proto2")
    _add_message(file, schema, set())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{schema.__name__}"))


def _add_message(file: descriptor_pb2.FileDescriptorProto, schema: type[BaseModel], done: set[str]) -> None:
    if schema.__name__ in done:
        return
    done.add(schema.__name__)
    message = file.message_type.add(name=schema.__name__)
    for number, (name, annotation) in enumerate(_fields(schema), 1):
        field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
        annotation = bare(annotation)
        if get_origin(annotation) is dict:
            entry_name = f"{''.join(part.title() for part in name.split('_'))}Entry"
            entry = message.nested_type.add(name=entry_name)
            entry.options.map_entry = True
            for entry_number, (part, of) in enumerate(zip(("key", "value"), get_args(annotation), strict=True), 1):
                member = entry.field.add(name=part, number=entry_number, label=_Field.LABEL_OPTIONAL)
                _set_type(file, entry, member, of, done)
            field.label, field.type = _Field.LABEL_REPEATED, _Field.TYPE_MESSAGE
            field.type_name = f".{_PACKAGE}.{schema.__name__}.{entry_name}"
            continue
        if get_origin(annotation) is tuple:
            field.label = _Field.LABEL_REPEATED
            annotation = get_args(annotation)[0]
        _set_type(file, message, field, annotation, done)


def _set_type(
    file: descriptor_pb2.FileDescriptorProto,
    scope: descriptor_pb2.DescriptorProto,
    field: descriptor_pb2.FieldDescriptorProto,
    annotation: Any,
    done: set[str],
) -> None:
    annotation = bare(annotation)
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        if isinstance(choices[0], str) and choices[0]:
            enum = scope.enum_type.add(name=field.name.title().replace("_", ""))
            for number, choice in enumerate(choices):
                enum.value.add(name=choice, number=number)
            field.type, field.type_name = _Field.TYPE_ENUM, f".{_PACKAGE}.{scope.name}.{enum.name}"
            return
        annotation = type(choices[0])
    if annotation in _SCALARS:
        field.type = _SCALARS[annotation]
        return
    _add_message(file, annotation, done)
    field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{annotation.__name__}"


def _fields(schema: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Yield each name of each field, with its type in text format."""
    for name, field in schema.model_fields.items():
        written = {alias: of for item in field.metadata if isinstance(item, Written) for alias, of in item.types}
        for alias in names_of(name, field):
            yield alias, written.get(alias, field.annotation)


def names_of(name: str, field: FieldInfo) -> list[str]:
    """Return the names of a field: its aliases, or its own name."""
    match field.validation_alias:
        case AliasChoices(choices=choices):
            return [str(choice) for choice in choices]
        case None:
            return [name]
        case alias:
            return [str(alias)]


def bare(annotation: Any) -> Any:
    """Strip ``Annotated`` and ``None`` from a type."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, UnionType):
            annotation = next(part for part in get_args(annotation) if part is not NoneType)
        else:
            return annotation


# --- The values -------------------------------------------------------------------------------------------------------


def _to_dict(message: Message) -> dict[str, Any]:
    return {descriptor.name: _value(descriptor, value) for descriptor, value in message.ListFields()}


def _value(descriptor: Any, value: Any) -> Any:
    kind = descriptor.message_type
    if kind is not None and kind.GetOptions().map_entry:
        of = kind.fields_by_name["value"]
        return {key: _single(of, item) for key, item in value.items()}
    if descriptor.is_repeated:
        return [_single(descriptor, item) for item in value]
    return _single(descriptor, value)


def _single(descriptor: Any, value: Any) -> Any:
    if isinstance(value, Message):
        return _to_dict(value)
    return value if descriptor.enum_type is None else descriptor.enum_type.values_by_number[value].name
