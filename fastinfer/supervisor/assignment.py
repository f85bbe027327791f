"""The first message to a serving process: its configuration, and the file descriptors that it has inherited."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fastinfer.config.server import ServerConfig

_LENGTH: Final = struct.Struct("<I")
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True)
class Assignment:
    """The start parameters of one serving process.

    Attributes:
        config: the server's configuration, with this process's share of threads and memory.
        slot: the number of its slot, from 0.
        supervisor: the supervisor's process id.
        listeners: the descriptors of each slot's listening sockets. The supervisor says which of them accept.
        counters: the descriptor of the memory for counters (see :mod:`fastinfer.shared.layout`).
        bank: the bank of that memory that this process writes.
        inherited: further descriptors, by purpose.
        crash_slot: its slot in the crash record; None: it has none.
    """

    config: ServerConfig
    slot: int
    supervisor: int
    listeners: tuple[tuple[int, ...], ...]
    counters: int
    bank: int
    inherited: Mapping[str, int]
    crash_slot: int | None

    def send(self, end: socket.socket) -> None:
        """Writes the assignment to a new socket pair; it fits into the socket's buffer."""
        data = pickle.dumps(self)
        end.sendall(_LENGTH.pack(len(data)) + data)

    @classmethod
    def receive(cls, end: socket.socket) -> Assignment:
        """Reads the supervisor's assignment. EOFError if the supervisor is gone."""
        (size,) = _LENGTH.unpack(_exactly(end, _LENGTH.size))
        assignment = pickle.loads(_exactly(end, size))
        assert isinstance(assignment, cls)
        return assignment


def _exactly(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = end.recv(size - len(data))
        if not more:
            raise EOFError("the supervisor is gone")
        data += more
    return data


def end_with(supervisor: int) -> None:
    """Makes the kernel send SIGTERM to this process when the supervisor ends, for whatever reason."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        os.kill(os.getpid(), signal.SIGTERM)  # the supervisor has already ended
