"""What a serving process is told before anything else: its configuration, and the descriptors that it has inherited."""

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
    """One serving process's part.

    Attributes:
        config: the server's configuration, with this process's share of threads and memory.
        slot: its place among the processes, from 0.
        supervisor: the supervisor's process id.
        listeners: the descriptors of each slot's listening sockets. A process accepts from those it is told to.
        counters: the descriptor of the memory for counters (see :mod:`fastinfer.shared.layout`).
        bank: the part of it that this process writes.
        inherited: further descriptors, by what they are for.
        crash_slot: its slot in the record of crashes; None: it does without.
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
        """Writes it to a new pair of sockets, whose buffer takes it whole."""
        data = pickle.dumps(self)
        end.sendall(_LENGTH.pack(len(data)) + data)

    @classmethod
    def receive(cls, end: socket.socket) -> Assignment:
        """Reads what the supervisor has sent. EOFError where it is gone already."""
        (size,) = _LENGTH.unpack(_exactly(end, _LENGTH.size))
        given = pickle.loads(_exactly(end, size))
        assert isinstance(given, cls)
        return given


def _exactly(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = end.recv(size - len(data))
        if not more:
            raise EOFError("the supervisor is gone")
        data += more
    return data


def end_with(supervisor: int) -> None:
    """Has the kernel send SIGTERM to this process when the supervisor ends, however it does."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        os.kill(os.getpid(), signal.SIGTERM)  # it was quicker
