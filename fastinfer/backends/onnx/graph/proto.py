"""Reads and writes ONNX models as protobuf messages, without copying their weights.

A :class:`Message` is split into its fields once; a field's value is decoded at each access. So only the nodes of a
large model cost time: weights stay slices of the bytes that were read, and the long lists in tree ensembles are never
walked. Fields that are not declared here are kept, and written back unchanged. An assignment replaces a field:
``graph.node = [*graph.node, node]``.

Only the fields that the graph reader needs are declared; ``tests/unit/test_onnx_proto.py`` compares each declaration
with the ``onnx`` package's. Source of the field numbers: ``onnx.proto`` (ONNX, Apache-2.0 license); of the wire format:
protobuf's "Encoding" page.

Pure: no files, no numpy; long walks yield the GIL. A message keeps the model's bytes alive.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Generic, Self, TypeVar, overload

M = TypeVar("M", bound="Message")
T = TypeVar("T")

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Limits of kept fields: a hostile file may have one per byte, and freeing a list of a million stops all threads.
_MAX_FIELDS = 200_000  # per message; a graph of 20,000 nodes with weights and types has 100,000
_MAX_FIELDS_IN_ALL = 1_000_000  # of a message and all nested ones
_FIELDS_A_TURN = 4096  # walked before the GIL is yielded
_BYTES_A_TURN = 1 << 22  # copied before the GIL is yielded
_SIZES = {_FIXED64: 8, _FIXED32: 4}


class ProtoError(ValueError):
    """The bytes are not a message, or the message is too large."""


# --- The wire ---------------------------------------------------------------------------------------------------------


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """Read the number at an offset; returns it and the offset after it."""
    value = shift = 0
    while True:
        if at >= len(view) or shift > 63:
            raise ProtoError("a number is cut off or too long")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7


def _varint(value: int) -> bytes:
    value &= 0xFFFF_FFFF_FFFF_FFFF
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_Entry = tuple[int, int, Any]
"""A field's number, its wire type, and its value: a number, assigned bytes or message, or the position of its bytes.

A position is ``start << 64 | size``, because Python's cyclic collector does not track integers, unlike views.
"""


def _walk(view: memoryview) -> Iterator[_Entry]:
    at, end, turn = 0, len(view), 0
    while at < end:
        turn += 1
        if turn % _FIELDS_A_TURN == 0:
            time.sleep(0)
        tag, at = _read_varint(view, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value: Any
            value, at = _read_varint(view, at)
        else:
            if kind == _BYTES:
                size, at = _read_varint(view, at)
            elif kind in _SIZES:
                size = _SIZES[kind]
            else:
                raise ProtoError(f"a field has the unknown wire type {kind}")
            if size > end - at:
                raise ProtoError("a field is longer than its message")
            value = at << 64 | size
            at += size
        if number == 0:
            raise ProtoError("a field has the number 0")
        yield number, kind, value


class _Budget:
    """The number of fields that a message and all nested ones may still keep."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = _MAX_FIELDS_IN_ALL

    def split(self, view: memoryview) -> list[_Entry]:
        entries = list(islice(_walk(view), _MAX_FIELDS + 1))
        self.left -= len(entries)
        if len(entries) > _MAX_FIELDS or self.left < 0:
            most = f"{_MAX_FIELDS} fields in a message, or {_MAX_FIELDS_IN_ALL} in all"
            raise ProtoError(f"it has more than {most}")
        return entries


# --- Messages and their fields ----------------------------------------------------------------------------------------


class Message:
    """A message: the bytes it was read from, split into fields, and the fields assigned since.

    Args:
        data: the serialized message; empty: a message without fields.

    Each access to a field raises ProtoError if the bytes are not a valid message.
    """

    __slots__ = ("_budget", "_changed", "_entries", "_view")

    def __init__(self, data: bytes | memoryview = b"") -> None:
        self._view = memoryview(data)
        self._budget = _Budget()  # shared with the nested messages
        self._entries: list[_Entry] | None = None  # None: not split yet
        self._changed = False  # whether a field was assigned

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def to_bytes(self) -> bytes:
        """Serialize the message."""
        return b"".join(self._pieces())

    def to_buffer(self) -> memoryview:
        """Serialize a message that may be large: yields the GIL while it copies."""
        made = bytearray()
        copied = 0
        for piece in self._pieces():
            for at in range(0, len(piece), _BYTES_A_TURN):
                part = piece[at : at + _BYTES_A_TURN]
                made += part
                copied += len(part)
                if copied >= _BYTES_A_TURN:
                    copied = 0
                    time.sleep(0)
        return memoryview(made)

    def _pieces(self) -> Iterator[bytes | memoryview]:
        """Yield the serialized message in parts; what is unchanged is a slice of the bytes that were read."""
        if not self._changed:
            yield self._view
            return
        for number, kind, value in self._all():
            yield _varint(number << 3 | kind)
            if kind == _VARINT:
                yield _varint(value)
            elif isinstance(value, Message):
                yield _varint(sum(map(len, value._pieces())))
                yield from value._pieces()
            else:
                held = self._value(kind, value)
                if kind == _BYTES:
                    yield _varint(len(held))
                yield held

    def copy(self) -> Self:
        """Return another message with the same fields; it shares the bytes of weights."""
        made = type(self)(self._view)
        made._entries = None if self._entries is None else list(self._entries)
        made._changed = self._changed
        return made

    def entries(self, number: int) -> list[tuple[int, Any]]:
        """Return the wire type and the value of each field with this number, in order."""
        return [(kind, self._value(kind, value)) for each, kind, value in self._all() if each == number]

    def first(self, number: int) -> list[tuple[int, Any]]:
        """Return the first field with this number, or nothing; the fields after it are not walked."""
        among = _walk(self._view) if self._entries is None else self._entries
        found = islice((entry for entry in among if entry[0] == number), 1)
        return [(kind, self._value(kind, value)) for _, kind, value in found]

    def last(self, number: int) -> list[tuple[int, Any]]:
        """Return the last field with this number, or nothing; the other fields are not kept."""
        among = _walk(self._view) if self._entries is None else self._entries
        found: _Entry | None = None
        for entry in among:
            if entry[0] == number:
                found = entry
        return [] if found is None else [(found[1], self._value(found[1], found[2]))]

    def positions(self, number: int) -> list[tuple[int, int]]:
        """Return where the bytes of each field with this number start and end in the bytes that were read."""
        found = [value for each, kind, value in _walk(self._view) if each == number and kind == _BYTES]
        return [(value >> 64, (value >> 64) + (value & 0xFFFF_FFFF_FFFF_FFFF)) for value in found]

    def replace(self, number: int, entries: Iterable[tuple[int, Any]]) -> None:
        """Replaces the fields with this number."""
        kept = [entry for entry in self._all() if entry[0] != number]
        self._entries = kept + [(number, kind, value) for kind, value in entries]
        self._changed = True

    def _all(self) -> list[_Entry]:
        if self._entries is None:
            self._entries = self._budget.split(self._view)
        return self._entries

    def _value(self, kind: int, value: Any) -> Any:
        if isinstance(value, Message):
            return memoryview(value.to_bytes())
        if kind == _VARINT or not isinstance(value, int):
            return value
        start = value >> 64
        return self._view[start : start + (value & 0xFFFF_FFFF_FFFF_FFFF)]


class _Field(Generic[T]):
    """A declared field: a descriptor that decodes at each access. An absent field has the type's empty value."""

    def __init__(self, number: int, kind: str, message: Callable[[], type[Message]] | None = None) -> None:
        self.number, self.kind, self.message = number, kind, message

    @overload
    def __get__(self, owner: None, of: type) -> Self: ...
    @overload
    def __get__(self, owner: Message, of: type) -> T: ...
    def __get__(self, owner: Message | None, of: type) -> Self | T:
        return self if owner is None else self.read(owner.entries(self.number))

    def __set__(self, owner: Message, value: T) -> None:
        owner.replace(self.number, self.write(value))

    def read(self, entries: list[tuple[int, Any]]) -> T:
        raise NotImplementedError

    def write(self, value: T) -> Iterable[tuple[int, Any]]:
        raise NotImplementedError


class _Integer(_Field[int]):
    def read(self, entries: list[tuple[int, Any]]) -> int:
        return _integers(entries)[-1] if entries else 0

    def write(self, value: int) -> Iterable[tuple[int, Any]]:
        return [(_VARINT, value)]


class _Integers(_Field[list[int]]):
    def read(self, entries: list[tuple[int, Any]]) -> list[int]:
        return _integers(entries)

    def write(self, value: list[int]) -> Iterable[tuple[int, Any]]:
        return [(_VARINT, each) for each in value]


class _LastInteger(_Integer):
    """A number that is found without keeping the fields before it, which may be long lists."""

    @overload
    def __get__(self, owner: None, of: type) -> Self: ...
    @overload
    def __get__(self, owner: Message, of: type) -> int: ...
    def __get__(self, owner: Message | None, of: type) -> Self | int:
        return self if owner is None else self.read(owner.last(self.number))


class _Float(_Field[float]):
    def read(self, entries: list[tuple[int, Any]]) -> float:
        return _floats(entries)[-1] if entries else 0.0

    def write(self, value: float) -> Iterable[tuple[int, Any]]:
        return [(_FIXED32, struct.pack("<f", value))]


class _Floats(_Field[list[float]]):
    def read(self, entries: list[tuple[int, Any]]) -> list[float]:
        return _floats(entries)

    def write(self, value: list[float]) -> Iterable[tuple[int, Any]]:
        return [(_FIXED32, struct.pack("<f", each)) for each in value]


class _Blob(_Field[memoryview]):
    def read(self, entries: list[tuple[int, Any]]) -> memoryview:
        return _blobs(entries)[-1] if entries else memoryview(b"")

    def write(self, value: memoryview) -> Iterable[tuple[int, Any]]:
        return [(_BYTES, memoryview(value))]


class _Blobs(_Field[list[memoryview]]):
    def read(self, entries: list[tuple[int, Any]]) -> list[memoryview]:
        return _blobs(entries)

    def write(self, value: list[memoryview]) -> Iterable[tuple[int, Any]]:
        return [(_BYTES, memoryview(each)) for each in value]


class _Text(_Field[str]):
    def read(self, entries: list[tuple[int, Any]]) -> str:
        return _text(_blobs(entries)[-1]) if entries else ""

    def write(self, value: str) -> Iterable[tuple[int, Any]]:
        return [(_BYTES, memoryview(value.encode()))]


class _FirstText(_Text):
    """A text that is searched from the front, because the lists after it may be long."""

    @overload
    def __get__(self, owner: None, of: type) -> Self: ...
    @overload
    def __get__(self, owner: Message, of: type) -> str: ...
    def __get__(self, owner: Message | None, of: type) -> Self | str:
        return self if owner is None else self.read(owner.first(self.number))


class _Texts(_Field[list[str]]):
    def read(self, entries: list[tuple[int, Any]]) -> list[str]:
        return [_text(each) for each in _blobs(entries)]

    def write(self, value: list[str]) -> Iterable[tuple[int, Any]]:
        return [(_BYTES, memoryview(each.encode())) for each in value]


class _Part(_Field[M | None]):
    """A nested message; None: it is absent."""

    @overload
    def __get__(self, owner: None, of: type) -> Self: ...
    @overload
    def __get__(self, owner: Message, of: type) -> M | None: ...
    def __get__(self, owner: Message | None, of: type) -> Self | M | None:
        if owner is None:
            return self
        part = self.read(owner.entries(self.number))
        if part is not None:
            part._budget = owner._budget
        return part

    def read(self, entries: list[tuple[int, Any]]) -> M | None:
        if len(entries) > 1:  # repeated messages are merged, as protobuf does
            entries = [(_BYTES, memoryview(b"".join(_blobs(entries))))]
        parts: list[M] = _parts(self, entries)
        return parts[0] if parts else None

    def write(self, value: M | None) -> Iterable[tuple[int, Any]]:
        return [] if value is None else [(_BYTES, value.copy())]


class _Parts(_Field[list[M]]):
    @overload
    def __get__(self, owner: None, of: type) -> Self: ...
    @overload
    def __get__(self, owner: Message, of: type) -> list[M]: ...
    def __get__(self, owner: Message | None, of: type) -> Self | list[M]:
        if owner is None:
            return self
        parts = self.read(owner.entries(self.number))
        for part in parts:
            part._budget = owner._budget
        return parts

    def read(self, entries: list[tuple[int, Any]]) -> list[M]:
        return _parts(self, entries)

    def write(self, value: list[M]) -> Iterable[tuple[int, Any]]:
        return [(_BYTES, each.copy()) for each in value]


def _integers(entries: list[tuple[int, Any]]) -> list[int]:
    """Decode numbers, packed or not."""
    values = []
    for kind, value in entries:
        if kind == _VARINT:
            values.append(_signed(value))
        elif kind == _BYTES:
            at = 0
            while at < len(value):
                each, at = _read_varint(value, at)
                values.append(_signed(each))
        else:
            raise ProtoError("a whole number has the wrong wire type")
    return values


def _floats(entries: list[tuple[int, Any]]) -> list[float]:
    values: list[float] = []
    for kind, value in entries:
        if kind not in (_FIXED32, _BYTES) or len(value) % 4:
            raise ProtoError("a number has the wrong wire type")
        values += struct.unpack(f"<{len(value) // 4}f", value)
    return values


def _blobs(entries: list[tuple[int, Any]]) -> list[memoryview]:
    if any(kind != _BYTES for kind, _ in entries):
        raise ProtoError("a text has the wrong wire type")
    return [value for _, value in entries]


def _text(value: memoryview) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise ProtoError("a text is not UTF-8") from None


def _parts(field: _Field[Any], entries: list[tuple[int, Any]]) -> list[Any]:
    assert field.message is not None
    made = field.message()
    return [made(value) for value in _blobs(entries)]


# --- ONNX -------------------------------------------------------------------------------------------------------------


class OperatorSetId(Message):
    """A domain's version."""

    __slots__ = ()
    domain = _Text(1, "string")
    version = _Integer(2, "int64")


class StringStringEntry(Message):
    """A key and a value."""

    __slots__ = ()
    key = _Text(1, "string")
    value = _Text(2, "string")


class Dimension(Message):
    """A dimension: a number, a symbol, or neither."""

    __slots__ = ()
    dim_value = _Integer(1, "int64")
    dim_param = _Text(2, "string")

    @property
    def is_open(self) -> bool:
        """Whether it has no number (``dim_value`` is then 0)."""
        return not self.entries(1)


class TensorShape(Message):
    """The dimensions of a tensor."""

    __slots__ = ()
    dim = _Parts[Dimension](1, "message", lambda: Dimension)


class TensorType(Message):
    """An element type and a shape; without a shape the rank is open."""

    __slots__ = ()
    elem_type = _Integer(1, "int32")
    shape = _Part[TensorShape](2, "message", lambda: TensorShape)


class Type(Message):
    """The type of a value; ``tensor_type`` is None for sequences, maps, optional values and sparse tensors."""

    __slots__ = ()
    tensor_type = _Part[TensorType](1, "message", lambda: TensorType)
    optional_type = _Part["OptionalType"](9, "message", lambda: OptionalType)


class OptionalType(Message):
    """The type of a value that may be absent."""

    __slots__ = ()
    elem_type = _Part[Type](1, "message", lambda: Type)


class ValueInfo(Message):
    """A name and its type."""

    __slots__ = ()
    name = _Text(1, "string")
    type = _Part[Type](2, "message", lambda: Type)


class Tensor(Message):
    """A constant. Its elements are in ``raw_data``, in the list of its type, or in another file."""

    __slots__ = ()
    dims = _Integers(1, "int64")
    data_type = _Integer(2, "int32")
    float_data = _Floats(4, "float")
    int32_data = _Integers(5, "int32")
    int64_data = _Integers(7, "int64")
    name = _Text(8, "string")
    raw_data = _Blob(9, "bytes")
    external_data = _Parts[StringStringEntry](13, "message", lambda: StringStringEntry)
    data_location = _Integer(14, "int32")


class SparseTensor(Message):
    """A constant of which only some elements are stored."""

    __slots__ = ()
    values = _Part[Tensor](1, "message", lambda: Tensor)
    dims = _Integers(3, "int64")


class Attribute(Message):
    """A named attribute of a node; ``type`` says which field holds it."""

    __slots__ = ()
    name = _FirstText(1, "string")
    f = _Float(2, "float")
    i = _Integer(3, "int64")
    s = _Blob(4, "bytes")
    t = _Part[Tensor](5, "message", lambda: Tensor)
    g = _Part["Graph"](6, "message", lambda: Graph)
    floats = _Floats(7, "float")
    ints = _Integers(8, "int64")
    strings = _Blobs(9, "bytes")
    graphs = _Parts["Graph"](11, "message", lambda: Graph)
    type = _LastInteger(20, "int32")
    ref_attr_name = _Text(21, "string")


class Node(Message):
    """An operator applied to values, by name; an empty name is an omitted argument."""

    __slots__ = ()
    input = _Texts(1, "string")
    output = _Texts(2, "string")
    name = _Text(3, "string")
    op_type = _Text(4, "string")
    attribute = _Parts[Attribute](5, "message", lambda: Attribute)
    domain = _Text(7, "string")
    overload = _Text(8, "string")


class Graph(Message):
    """Nodes in topological order, with inputs, outputs and constants."""

    __slots__ = ()
    node = _Parts[Node](1, "message", lambda: Node)
    name = _Text(2, "string")
    initializer = _Parts[Tensor](5, "message", lambda: Tensor)
    input = _Parts[ValueInfo](11, "message", lambda: ValueInfo)
    output = _Parts[ValueInfo](12, "message", lambda: ValueInfo)
    value_info = _Parts[ValueInfo](13, "message", lambda: ValueInfo)
    sparse_initializer = _Parts[SparseTensor](15, "message", lambda: SparseTensor)


class Function(Message):
    """An operator that the model defines by a graph."""

    __slots__ = ()
    name = _Text(1, "string")
    input = _Texts(4, "string")
    output = _Texts(5, "string")
    attribute = _Texts(6, "string")
    node = _Parts[Node](7, "message", lambda: Node)
    opset_import = _Parts[OperatorSetId](9, "message", lambda: OperatorSetId)
    domain = _Text(10, "string")
    attribute_proto = _Parts[Attribute](11, "message", lambda: Attribute)
    overload = _Text(13, "string")


class Model(Message):
    """A model file."""

    __slots__ = ()
    ir_version = _Integer(1, "int64")
    producer_name = _Text(2, "string")
    producer_version = _Text(3, "string")
    graph = _Part[Graph](7, "message", lambda: Graph)
    opset_import = _Parts[OperatorSetId](8, "message", lambda: OperatorSetId)
    metadata_props = _Parts[StringStringEntry](14, "message", lambda: StringStringEntry)
    functions = _Parts[Function](25, "message", lambda: Function)
