"""Remote calls between the supervisor and a serving process, over a socket pair, in both directions.

A message is its length (4 bytes, little-endian) and a JSON object: ``{"call", "with"}`` is a notification, ``{"call",
"with", "id"}`` a call whose answer is ``{"id", "result"}`` or ``{"id", "error"}``. Handlers start in the order of the
messages; coroutine handlers then run concurrently.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
import struct
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final

import orjson

from fastinfer.base.errors import ApiError

log = logging.getLogger(__name__)

_LENGTH: Final = struct.Struct("<I")

Handlers = Mapping[str, Callable[..., Any]]


class ChannelClosedError(Exception):
    """The other side has closed the channel."""


class Channel:
    """One end of a channel. Loop's thread only; created by :meth:`open`.

    Attributes:
        closed: done when one of the sides has closed the channel.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handlers: Handlers) -> None:
        self._reader = reader
        self._writer = writer
        self._handlers = handlers
        self._ids = count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def open(cls, end: socket.socket, handlers: Handlers) -> Channel:
        """Opens a channel and begins to read from it.

        Args:
            end: one socket of the pair; the channel owns it from now on.
            handlers: functions or coroutine functions that the other side may call, by name, with keyword arguments
                and results that JSON can hold. The caller gets an ApiError of a handler as it is, and any other
                exception as an ApiError 500.
        """
        end.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=end), handlers)

    def notify(self, call: str, **arguments: Any) -> None:
        """Calls without waiting for an answer; does nothing if the other side is gone."""
        self._send({"call": call, "with": arguments})

    async def call(self, call: str, **arguments: Any) -> Any:
        """Calls, and returns the answer.

        Raises:
            ApiError: what the other side's handler raised.
            ChannelClosedError: the channel is closed, or closes before the answer.
        """
        if self.closed.done():
            raise ChannelClosedError
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"call": call, "with": arguments, "id": number})
            return await answer
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Closes the channel: every waiting call fails, on both sides."""
        self._task.cancel()
        self._closed()

    def _send(self, message: Any) -> None:
        if not self.closed.done():
            text = orjson.dumps(message)
            self._writer.write(_LENGTH.pack(len(text)) + text)

    async def _read(self) -> None:
        try:
            while True:
                (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                self._received(orjson.loads(await self._reader.readexactly(size)))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._closed()

    def _closed(self) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ChannelClosedError())
        self._writer.close()

    def _received(self, message: dict[str, Any]) -> None:
        if "call" in message:
            self._called(message["call"], message["with"], message.get("id"))
            return
        answer = self._waiting.get(message["id"])
        if answer is None or answer.done():
            return  # the caller no longer waits
        if "error" in message:
            answer.set_exception(ApiError.from_json(message["error"]))
        else:
            answer.set_result(message["result"])

    def _called(self, name: str, arguments: dict[str, Any], number: int | None) -> None:
        # Tasks start in the order of the calls, coroutine handlers included.
        task = asyncio.get_running_loop().create_task(self._handle(self._handlers[name], arguments, number))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _handle(self, handler: Callable[..., Any], arguments: dict[str, Any], number: int | None) -> None:
        answer: dict[str, Any]
        try:
            result = handler(**arguments)
            answer = {"result": await result if inspect.isawaitable(result) else result}
        except ApiError as error:
            answer = {"error": error.to_json()}
        except Exception:
            log.exception("a call between processes has failed")
            answer = {"error": ApiError(500, "internal error").to_json()}
        if number is not None:
            self._send({"id": number, **answer})
