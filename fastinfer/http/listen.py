"""Listening sockets, for one process or for several.

Several processes get a listener each at the same address (``SO_REUSEPORT``); the kernel spreads connections over them.
One listener that all accept from would be simpler, but the process that wakes first would take nearly all connections.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Iterable
from typing import Final

from fastinfer.http.port_owner import find_owner

BACKLOG: Final = 4096
_SO_ATTACH_FILTER: Final = 26
_FLAGS_AT, _SYN = 13, 0x02  # in a TCP header
_SO_BINDTOIFINDEX: Final = 62  # Linux 5.1; an unprivileged process may use it once
_NO_INTERFACE: Final = 0x7FFF_FFFF  # no interface has this number
_UNACKED_AT: Final = 24  # tcpi_unacked in Linux's struct tcp_info: a listener's waiting connections


def bind(host: str, port: int, count: int = 1) -> list[list[socket.socket]]:
    """Create ``count`` listeners at every address of a host.

    Args:
        host: a name or an address.
        port: 0 takes a free port, the same one for all.
        count: how many processes are going to accept.

    Returns:
        For each process its listeners, one for each address. They listen already.

    Raises:
        OSError: the address cannot be used.
    """
    groups: list[list[socket.socket]] = [[] for _ in range(count)]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            for number, group in enumerate(groups):
                listener = socket.socket(family, kind, protocol)
                group.append(listener)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # The first listener binds without sharing, so that an address that another server uses is an error.
                if number:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                # Port 0: all addresses of the host use the port that the first one got.
                listener.bind((address[0], port, *address[2:]))
                if not number:
                    listener.listen(BACKLOG)
                    if count > 1:
                        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                else:
                    listener.listen(BACKLOG)
                port = listener.getsockname()[1]
                listener.setblocking(False)
    except BaseException:
        close(group for group in groups)
        raise
    return groups


def why_not(error: OSError, host: str, port: int) -> str:
    """Return why :func:`bind` has failed, as a sentence that names the process that has the port."""
    owner = find_owner(port) if error.errno == errno.EADDRINUSE else ""
    return f"cannot listen on {host}:{port}: {error.strerror or error}" + (f" by {owner}" if owner else "")


def close(groups: Iterable[Iterable[socket.socket]]) -> None:
    """Closes all listeners."""
    for group in groups:
        for listener in group:
            listener.close()


def refuse_connects(listener: socket.socket) -> bool:
    """Refuses new connects to a listener; its accept queue and the handshakes that have begun are kept.

    Closing a listener resets the connections in its accept queue and the handshakes that have begun. So new connects
    are refused first: the listener is bound to a network interface that does not exist, so that the kernel finds no
    listener for a new connect. A handshake belongs to the listener that it began with, and ends there.

    Any process that has the listener may call this, also repeatedly.

    Returns:
        Whether connects are refused. Otherwise (an old kernel, a listener that is bound to an interface already) the
        kernel drops them: clients retry after a second, so the listener must be closed before that.
    """
    with contextlib.suppress(OSError):
        if listener.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX) != _NO_INTERFACE:
            listener.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _NO_INTERFACE)
        return True
    _drop_connects(listener)
    return False


def waiting(listener: socket.socket) -> int:
    """Return how many connections wait in the accept queue."""
    with contextlib.suppress(OSError):
        information = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED_AT + 4)
        if len(information) == _UNACKED_AT + 4:
            (count,) = struct.unpack_from("@I", information, _UNACKED_AT)
            return int(count)
    return 0  # not a TCP socket


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32))


def _drop_connects(listener: socket.socket) -> None:
    """Makes the kernel drop SYN segments before they reach the listener."""
    program = (_Instruction * 4)(
        _Instruction(0x30, 0, 0, _FLAGS_AT),  # load the byte of flags
        _Instruction(0x45, 0, 1, _SYN),  # if SYN is not set, skip one instruction
        _Instruction(0x06, 0, 0, 0),  # drop
        _Instruction(0x06, 0, 0, 0xFFFFFFFF),  # keep
    )
    with contextlib.suppress(OSError):  # a kernel without socket filters: the listener closes soon anyway
        value = struct.pack("@HP", len(program), ctypes.addressof(program))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, value)
