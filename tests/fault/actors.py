"""What makes the chaos: hostile clients, operators, disks. Each is a class with a name, and runs in its own process.

Each actor is hostile or honest. The honest form sends as many requests of as many bytes, at the same times, and reads
its answers: what the machine and the server need for that is fair, and a healthy client's latency beside it is what
its latency beside the hostile form is compared with.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import mmap
import os
import random
import shutil
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from tests import onnx_models
from tests.fault import bombs
from tests.fault.bombs import Bomb
from tests.fault.clients import connect, head, large_answer, post, reset
from tests.fault.trial import CORES, KIB, MIB
from tests.fault.work import ask, ask_all, leave, stays
from tests.support import Answer, exchange, inference, tensor

THREADS = 2 * CORES
SPARE = 4
CONTROL_BYTES = 2 * 4 + 1024  # struct control of mount.cpp
LOAD_PATIENCE_S = 90.0
LARGE_ANSWER = 8 * MIB
NO_TRIAL = "max_batch_size = 0\n"
WARMED_UP_BY_A_FILE = (
    'max_batch_size = 0\n[[model_warmup]]\nname = "a"\n'
    'inputs.x = { data_type = "TYPE_FP32", dims = [1, 4], input_data_file = "raw" }\n'
)
READ_BUFFER = 64 * KIB


def _endless() -> bytes:
    """As :func:`onnx_models.endless`, for rows of any length: each length is a shape of its own in the queue."""
    made = onnx_models.ModelProto.FromString(onnx_models.endless())
    for each in (*made.graph.input, *made.graph.output):
        each.type.tensor_type.shape.dim[1].dim_param = "n"
    for each in (made.graph.node[0].attribute[0].g.input[2], made.graph.node[0].attribute[0].g.output[1]):
        each.type.tensor_type.shape.dim[1].dim_param = "n"
    whole: bytes = made.SerializeToString()
    return whole


def models(fillers: int) -> tuple[dict[str, bytes], dict[str, str]]:
    """The models that actors need, and the configurations of some. `filler` models are there to be scraped."""
    small = onnx_models.identity("FP32", ["batch", 4])
    endless = {f"endless{number}": _endless() for number in range(THREADS)}
    made = {
        **endless,
        "large_answer": large_answer(LARGE_ANSWER // 4),
        **{f"spare{number}": small for number in range(SPARE)},
        "victim": onnx_models.simple(),
        **{f"filler{number:03}": small for number in range(fillers)},
    }
    return made, dict.fromkeys(endless, NO_TRIAL)


@dataclass
class Arena:
    """What actors act on.

    Attributes:
        port, supervisor: the server.
        repository: its models.
        control: the file that mount.cpp reads; None if nothing is preloaded.
        healthy: models that a healthy client asks. Their files may fail, but nobody unloads them.
        bombs: requests to send.
        long: whether there is time for what takes half a minute.
    """

    port: int
    supervisor: int
    repository: Path
    control: Path | None
    healthy: tuple[str, ...]
    bombs: list[Bomb]
    long: bool


@dataclass
class Actor:
    """Acts again and again, with pauses whose mean is `pause_s`, until its time is over.

    Attributes:
        seen: how often which outcome came of it.
        events: seconds since the start, what was done, seconds that it took.
    """

    arena: Arena
    honest: bool
    source: random.Random
    seen: Counter[str] = field(default_factory=Counter)
    events: list[tuple[float, str, float]] = field(default_factory=list)

    name: ClassVar[str]
    pause_s: ClassVar[float] = 1.0
    first_s: ClassVar[float] = 0.0
    """The pause before the first step."""

    def hostile(self) -> str:
        """One step; returns what came of it."""
        raise NotImplementedError

    def fair(self) -> str:
        """The same for the honest form; the same step for who does no harm."""
        return self.hostile()

    def begin(self) -> None:
        """Prepares what must be there for the whole time."""

    def close(self) -> None:
        """Undoes what must not last."""

    def run(self, seconds: float) -> None:
        began = time.monotonic()
        self.begin()
        try:
            self._sleep(self.first_s, began + seconds)
            while time.monotonic() < began + seconds:
                at = time.monotonic()
                try:
                    what = self.fair() if self.honest else self.hostile()
                except (OSError, http.client.HTTPException) as error:
                    what = type(error).__name__
                self.seen[what] += 1
                self.events.append((round(at - began, 2), what, round(time.monotonic() - at, 3)))
                self._sleep(self.source.expovariate(1 / self.pause_s), began + seconds)
        finally:
            self.close()

    def _sleep(self, seconds: float, end: float) -> None:
        time.sleep(max(0.0, min(seconds, end - time.monotonic())))

    # --- What several use -----------------------------------------------------

    def request(self, method: str, path: str, body: Any = None, timeout_s: float = LOAD_PATIENCE_S) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.arena.port, timeout=timeout_s)
        with contextlib.closing(connection):
            return exchange(connection, method, path, body)

    def spare(self) -> str:
        return f"spare{self.source.randrange(SPARE)}"

    @staticmethod
    def seen_of(statuses: list[int]) -> str:
        """Statuses in one word; 0 is none."""
        return " ".join(sorted({f"{status}" for status in statuses}))

    def load_spare(self) -> str:
        """A good model is loaded, used by nobody, or unloaded."""
        action = self.source.choice(("load", "load", "unload"))
        return f"{action} {self.request('POST', f'/v2/models/{self.spare()}/{action}').status}"


# --- Loads ------------------------------------------------------------------------------------------------------------


class WorkerLoads(Actor):
    """Loads and unloads a worker, which needs no file: never to fail, whatever else goes on."""

    name = "worker loads"
    pause_s = 0.5

    def hostile(self) -> str:
        loaded = self.request("POST", "/v2/workers/echo/load", {"tag": self.source.randrange(4), "share": False})
        if loaded.status != 200:
            return f"load {loaded.status}"
        return f"unload {self.request('POST', f'/v2/models/{loaded.body.decode()}/unload').status}"


class ModelLoads(Actor):
    """Loads that fail: damaged files, files that vanish, configurations of all sorts."""

    name = "model loads"
    pause_s = 0.4

    def fair(self) -> str:
        return self.load_spare()

    def begin(self) -> None:
        self._whole = (self.arena.repository / "victim" / "1" / "model.onnx").read_bytes()
        self._version = self.arena.repository / "victim" / "2"

    def hostile(self) -> str:
        steps: list[Callable[[], str]] = [self._damaged, self._vanishing, self._override, self._absent, self._storm]
        return self.source.choice(steps)()

    def _load(self, body: Any = None, name: str = "victim") -> int:
        return self.request("POST", f"/v2/models/{name}/load", body).status

    def _damaged(self) -> str:
        kind = self.source.randrange(4)
        size = self.source.randrange(len(self._whole))
        damaged = [self._whole[:size], self.source.randbytes(size), self._whole + self.source.randbytes(99), b""][kind]
        with contextlib.suppress(OSError):
            self._version.mkdir(exist_ok=True)
            (self._version / "model.onnx").write_bytes(damaged)
        status = self._load()
        shutil.rmtree(self._version, ignore_errors=True)
        return f"damaged {status}"

    def _vanishing(self) -> str:
        def flicker() -> None:
            for _ in range(30):
                with contextlib.suppress(OSError):
                    self._version.mkdir(exist_ok=True)
                    (self._version / "model.onnx").write_bytes(self._whole)
                    time.sleep(0.002)
                shutil.rmtree(self._version, ignore_errors=True)

        thread = threading.Thread(target=flicker)
        thread.start()
        statuses = [self._load() for _ in range(3)]
        thread.join()
        return f"vanishing {statuses[-1]}"

    def _override(self) -> str:
        large = {f"key{number}": {"string_value": "v" * 50} for number in range(2000)}
        config = self.source.choice(
            [
                {"max_batch_size": self.source.randrange(-2, 100)},
                {"parameters": large, "max_batch_size": 8},
                {"instance_group": [{"count": 4}]},
                {"nonsense": [[]] * 5000},
                {"input": [{"name": "no", "data_type": "TYPE_FP32", "dims": [-1]}] * 50},
            ]
        )
        name = self.spare()
        return f"override {self._load({'parameters': {'config': json.dumps(config)}}, name)}"

    def _absent(self) -> str:
        return f"absent {self._load(name=f'nobody{self.source.randrange(100)}')}"

    def _storm(self) -> str:
        """Eight at once, for one name."""
        threads = [threading.Thread(target=lambda: self._quietly(self.load_spare)) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return "storm"

    @staticmethod
    def _quietly(step: Callable[[], str]) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            step()


class HangingLoads(Actor):
    """Loads that hang in a read: a FIFO that nobody writes to stands for a file on a dead mount.

    The models stay in the repository until the chaos has ended, so polls find them too.
    """

    name = "hanging loads"
    pause_s = 4.0
    first_s = 1.0
    NAMES: ClassVar = ("hangs_warming_up", "hangs_reading", "hangs_configuring")

    def begin(self) -> None:
        self._socks: list[socket.socket] = []
        if not self.honest:
            self.make(self.arena.repository)

    @classmethod
    def make(cls, repository: Path) -> None:
        """Writes the models somewhere else and moves them into the repository."""
        small = onnx_models.identity("FP32", ["batch", 4])
        for name, fifo in zip(cls.NAMES, ("warmup/raw", "1/model.onnx", "config.toml"), strict=True):
            directory = repository.parent / f"new-{name}"
            (directory / "1").mkdir(parents=True)
            (directory / "1" / "model.onnx").write_bytes(small)
            (directory / "config.toml").write_text(WARMED_UP_BY_A_FILE)
            file = directory / fifo
            file.parent.mkdir(exist_ok=True)
            file.unlink(missing_ok=True)
            os.mkfifo(file)
            directory.rename(repository / name)

    @classmethod
    def release(cls, repository: Path) -> None:
        """Lets those that wait in a read go on, and removes the models."""
        for name in cls.NAMES:
            for file in [*repository.glob(f"{name}/**/*")]:
                if file.is_fifo():
                    for _ in range(20):
                        with contextlib.suppress(OSError):  # ENXIO: nobody reads
                            os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
                        time.sleep(0.005)
            shutil.rmtree(repository / name, ignore_errors=True)

    def fair(self) -> str:
        return self.load_spare()

    def hostile(self) -> str:
        """The client waits for a while, or leaves at once."""
        name = self.source.choice(self.NAMES)
        sock = connect(self.arena.port)
        sock.sendall(head(f"/v2/models/{name}/load", 0))
        self._socks.append(sock)
        if len(self._socks) > 3:
            reset(self._socks.pop(0))
        sock.settimeout(0.2)
        try:
            return f"{name} {sock.recv(READ_BUFFER)[9:12].decode() or 'closed'}"
        except TimeoutError:
            return f"{name} waits"

    def close(self) -> None:
        for sock in self._socks:
            sock.close()


class ControlBodies(Actor):
    """Bodies of a MiB to endpoints that need a few bytes."""

    name = "control bodies"
    pause_s = 1.0

    def fair(self) -> str:
        return f"index {self.request('POST', '/v2/repository/index', {'ready': True}).status}"

    def hostile(self) -> str:
        size = MIB - 2 * KIB
        body = self.source.choice(
            [
                b'{"unknown":[' + b"[]," * (size // 3) + b"[]]}",
                b'{"parameters":{' + b",".join(b'"k%06d":1' % each for each in range(size // 12)) + b"}}",
                b'{"ready":' + b" " * size + b"true}",
                b"[" * size,
            ]
        )
        path = self.source.choice(["/v2/repository/index", "/v2/models/spare0/load", "/v2/workers/echo/load"])
        return f"{self.request('POST', path, body).status}"


# --- The operator -----------------------------------------------------------------------------------------------------


class Hangups(Actor):
    """SIGHUP: a rolling restart. No attack, so it comes in the control run too."""

    name = "SIGHUP"
    pause_s = 25.0
    first_s = 1.0

    def hostile(self) -> str:
        os.kill(self.arena.supervisor, signal.SIGHUP)
        return "sent"


class Diagnostics(Actor):
    """SIGUSR1 and SIGUSR2, if the server has them: to one without they are deadly."""

    name = "SIGUSR"
    pause_s = 2.0

    def hostile(self) -> str:
        number = self.source.choice((signal.SIGUSR1, signal.SIGUSR2))
        os.kill(self.arena.supervisor, number)
        return number.name

    def close(self) -> None:
        if self.seen[signal.SIGUSR2.name] % 2:  # it toggles
            os.kill(self.arena.supervisor, signal.SIGUSR2)


class Scrapers(Actor):
    """`/metrics`, the statistics of all models and the index, once a second each. No attack either."""

    name = "scrapers"
    pause_s = 1.0

    def hostile(self) -> str:
        statuses = {self.request("GET", path).status for path in ("/metrics", "/v2/models/stats")}
        statuses.add(self.request("POST", "/v2/repository/index").status)
        return "200" if statuses == {200} else f"{sorted(statuses)}"


# --- Disks ------------------------------------------------------------------------------------------------------------


class Mounts(Actor):
    """Files under one path fail as those of a dead mount, or their calls do not return for seconds (mount.cpp)."""

    name = "mounts"
    pause_s = 2.0
    ERRORS: ClassVar = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES, errno.ETIMEDOUT)

    def begin(self) -> None:
        self._control: mmap.mmap | None = None
        if self.arena.control is not None:
            with self.arena.control.open("r+b") as file:
                self._control = mmap.mmap(file.fileno(), CONTROL_BYTES)

    def fair(self) -> str:
        """Files are touched, which is a new version of the model to a poll."""
        os.utime(self.arena.repository / self.spare() / "1" / "model.onnx")
        return "touched"

    def hostile(self) -> str:
        assert self._control is not None
        name = self.source.choice([self.spare(), *self.arena.healthy, ""])
        path = self.arena.repository / name if name else self.arena.repository
        blocks = self.source.random() < 0.3
        number = 0 if blocks else self.source.choice(self.ERRORS)
        self._control[8:] = str(path).encode().ljust(CONTROL_BYTES - 8, b"\0")
        lasts_s = self.source.uniform(1.2, 4)
        if self.arena.long and self.source.random() < 0.05:
            lasts_s *= 10  # longer than a process may stand still
        # Some calls return before the disk is back, as of a mount with a time limit of its own.
        block_s = self.source.choice((0.5, 2 * lasts_s)) if blocks else 0
        self._control[:8] = struct.pack("ii", number, int(1000 * block_s))
        time.sleep(lasts_s)
        if self.source.random() < 0.5:
            self._touch(name)
        self._control[:8] = bytes(8)
        return f"{'blocked' if blocks else errno.errorcode[number]} {'a model' if name else 'the repository'}"

    def _touch(self, name: str) -> None:
        """Has a poll look closer as soon as it can."""
        if name.startswith("spare"):
            with contextlib.suppress(OSError):
                os.utime(self.arena.repository / name / "1" / "model.onnx")

    def close(self) -> None:
        if self._control is not None:
            self._control[:8] = bytes(8)


class Disks(Actor):
    """Directories that become something else for a while: a loop of links, a file, nothing, an empty one."""

    name = "disks"
    pause_s = 3.0
    first_s = 2.0

    def fair(self) -> str:
        """A model's directory is replaced by an equal one."""
        directory = self.arena.repository / self.spare()
        copy = directory.parent.parent / "copy"
        shutil.copytree(directory, copy)
        gone = directory.parent.parent / "gone"
        directory.rename(gone)
        copy.rename(directory)
        shutil.rmtree(gone)
        return "replaced"

    def hostile(self) -> str:
        repository = self.arena.repository
        kinds: dict[str, Callable[[Path], None]] = {
            "a loop of links": lambda path: path.symlink_to(path),
            "a file": lambda path: path.write_bytes(b"no directory"),
            "nothing": lambda _: None,
            "empty": lambda path: path.mkdir(),
            "a link to nothing": lambda path: path.symlink_to(path.parent / "nowhere"),
        }
        kind = self.source.choice([*kinds])
        # A model alone may be unloaded when it is removed, so only those go that nobody needs.
        whole = self.source.random() < 0.4
        name = self.spare()
        if whole:
            self._replaced(repository, kinds[kind])
        else:
            self._replaced(repository / name / "1" if self.source.random() < 0.5 else repository / name, kinds[kind])
        return f"{'the repository' if whole else 'a model'} is {kind}"

    def _replaced(self, path: Path, put: Callable[[Path], None]) -> None:
        aside = self.arena.repository.parent / "aside"
        path.rename(aside)
        try:
            put(path)
            time.sleep(self.source.uniform(1.5, 5))
        finally:
            if path.is_symlink() or path.is_file():
                path.unlink()
            elif path.exists():
                shutil.rmtree(path)
            aside.rename(path)


# --- Bombs ------------------------------------------------------------------------------------------------------------


class Bombs(Actor):
    """One bomb after the other; their answers are read."""

    name = "bombs"
    pause_s = 0.7

    def pick(self) -> bytes:
        made = self.source.choice(self.arena.bombs)
        return honest_like(made).message if self.honest else made.message

    def hostile(self) -> str:
        return f"{ask(self.arena.port, self.pick())}"


class BombBursts(Bombs):
    """Sixteen at once."""

    name = "bursts of bombs"
    pause_s = 8.0
    first_s = 2.0

    def hostile(self) -> str:
        return self.seen_of(ask_all(self.arena.port, [self.pick() for _ in range(16)]))


class FleeingBombs(Bombs):
    """Twenty whose clients leave as soon as all is sent."""

    name = "bombs of clients that leave"
    pause_s = 4.0

    def hostile(self) -> str:
        leave(self.arena.port, [self.pick() for _ in range(20)], stays(self.source.choice((0, 0.05, 0.5))))
        return "left"

    def fair(self) -> str:
        return self.seen_of(ask_all(self.arena.port, [self.pick() for _ in range(20)]))


def honest_like(made: Bomb) -> Bomb:
    """A request of about as many bytes on the wire."""
    encoding = "" if made.received == made.inflated else "gzip"
    sizes = [KIB * 2**power for power in range(5, 17)]
    ratio = 2.0 if encoding else 1.0
    size = min(sizes, key=lambda each: abs(each - ratio * made.received))
    return bombs.honest(encoding, min(size, 8 * MIB))


class Images(Actor):
    """JPEGs and PNGs of one colour, which are small and decode for seconds; the honest ones are noise."""

    name = "images"
    pause_s = 2.5

    def begin(self) -> None:
        self._hostile = [
            bombs.image("JPEG", bombs.jpeg(4700, 200), timeout_us=200_000).message,
            bombs.image("JPEG", bombs.jpeg(2000, 800)).message,
            bombs.image("PNG", bombs.png(4700)).message,
        ]
        noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (180, 180, 3), np.uint8))
        file = self.arena.repository.parent / f"noise-{os.getpid()}.png"
        noise.save(file)
        self._honest = bombs.image("honest", file.read_bytes()).message

    def hostile(self) -> str:
        message = self.source.choice(self._hostile)
        if self.source.random() < 0.3:
            leave(self.arena.port, [message] * 4, stays(0.1))
            return "left"
        return f"{ask(self.arena.port, message)}"

    def fair(self) -> str:
        return f"{ask(self.arena.port, self._honest)}"


# --- Clients ----------------------------------------------------------------------------------------------------------


class Departures(Actor):
    """A thousand requests of as many shapes wait for a model that is busy, and leave at once."""

    name = "departures"
    pause_s = 5.0
    first_s = 1.0
    MANY: ClassVar = 1000

    def _messages(self, model: str) -> list[bytes]:
        """Every other one has the shape that is run; the others have up to 500."""
        lengths = [1 + number % 500 if number % 2 else 1 for number in range(self.MANY)]
        return [post(model, b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,%d],"data":[%s]}]}' % (
            length, b",".join([b"0.5"] * length))) for length in lengths]  # fmt: skip

    def hostile(self) -> str:
        name = f"endless{self.source.randrange(THREADS)}"
        with contextlib.ExitStack() as stack:
            socks = []
            for message in self._messages(name):
                socks.append(stack.enter_context(connect(self.arena.port)))
                socks[-1].sendall(message)
            time.sleep(0.5)
            for place, sock in enumerate(socks):
                (reset if place % 2 else socket.socket.close)(sock)
        return "left"

    def fair(self) -> str:
        return self.seen_of(ask_all(self.arena.port, self._messages("same_fp32")))


class SlowClients(Actor):
    """Answers that are read a KiB at a time, requests that are sent a byte at a time, uploads that are cut."""

    name = "slow clients"
    pause_s = 1.0
    MANY: ClassVar = 40

    def begin(self) -> None:
        body = json.dumps(
            {**inference(tensor("x", [1, 1], "FP32", [1.0])), "parameters": {"binary_data_output": True}}
        ).encode()
        self._large = post("large_answer", body)
        self._upload = bombs.honest("", MIB).message

    def hostile(self) -> str:
        steps: dict[str, Callable[[], None]] = {"read": self._read, "write": self._write, "cut": self._cut}
        kind = self.source.choice([*steps])
        steps[kind]()
        return kind

    def fair(self) -> str:
        message = self.source.choice((self._large, self._upload))
        return self.seen_of(ask_all(self.arena.port, [message] * 4))

    def _read(self) -> None:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(self.arena.port)) for _ in range(self.MANY // 4)]
            for sock in socks:
                sock.sendall(self._large)
            for _ in range(10):
                time.sleep(0.3)
                for sock in socks:
                    sock.recv(KIB)

    def _write(self) -> None:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(self.arena.port)) for _ in range(self.MANY)]
            for at in range(10):
                time.sleep(0.3)
                for sock in socks:
                    sock.sendall(self._upload[at : at + 1])

    def _cut(self) -> None:
        for _ in range(self.MANY):
            sock = connect(self.arena.port)
            sock.sendall(self._upload[: self.source.choice((10, 100 * KIB, len(self._upload) - 1))])
            self.source.choice((reset, socket.socket.close))(sock)


class EndlessRuns(Actor):
    """Runs without end: of one model, or of as many as there are native threads. Their clients leave after seconds."""

    name = "endless runs"
    pause_s = 3.0
    first_s = 2.0

    def _message(self, name: str) -> bytes:
        return post(name, json.dumps(inference(tensor("x", [1, 1], "FP32", [0.0]))).encode())

    def hostile(self) -> str:
        names = [f"endless{number}" for number in range(THREADS)]
        if one := self.source.random() < 0.4:
            names = names[:1] * (4 * THREADS)
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(connect(self.arena.port)).sendall(self._message(name))
            time.sleep(self.source.uniform(1, 4))
        return "of one model" if one else f"of {len(names)} models"

    def fair(self) -> str:
        return self.seen_of(ask_all(self.arena.port, [self._message("same_fp32")] * (2 * THREADS)))


ACTORS: tuple[type[Actor], ...] = (
    WorkerLoads, ModelLoads, HangingLoads, ControlBodies, Hangups, Scrapers, Mounts, Disks, Bombs, BombBursts,
    FleeingBombs, Images, Departures, SlowClients, EndlessRuns,
)  # fmt: skip
OPTIONAL: tuple[type[Actor], ...] = (Diagnostics,)
BY_NAME = {each.name: each for each in (*ACTORS, *OPTIONAL)}


def bodies(full: bool) -> list[Bomb]:
    """The bombs of a run, made before its start, and the honest requests like them."""
    made = [bombs.bomb(kind, "gzip", (64 if full else 8) * MIB) for kind in bombs.KINDS if kind != "unknown fields"]
    made += [bombs.bomb(kind, "deflate", 8 * MIB) for kind in ("zeros", "classes", "empty strings")]
    made += [bombs.bomb(kind, "", 2 * MIB) for kind in ("classes", "classes of rows", "empty strings", "a long number",
             "nested numbers", "unknown fields", "data before its datatype")]  # fmt: skip
    for each in made:
        honest_like(each)
    return made


def lines(events: dict[str, list[tuple[float, str, float]]]) -> Iterator[str]:
    """All that the actors did, in order of time."""
    for at, name, what, took in sorted((at, name, what, took) for name, all_of in events.items()
                                       for at, what, took in all_of):  # fmt: skip
        yield f"{at:8.2f} s  {name}: {what} ({took:.3f} s)"
