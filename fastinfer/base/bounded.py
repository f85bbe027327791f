"""Calls on threads, each with a time limit.

A thread that waits for a disk, or runs inside a foreign library, cannot be ended. When its time limit passes, its call
fails for the caller, and another thread takes its place. The thread itself is *stuck* until the call returns; the
result is then dropped. The number of stuck threads has a limit; while it is reached, further calls are refused.

A thread takes one call after another, and ends when there has been none for half a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

from fastinfer.base.errors import ApiError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_IDLE_S = 0.5  # an idle thread ends after this time


class _Call:
    """One call; ``done`` gets its result or error for the caller."""

    def __init__(self, what: str, function: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        self.what = what
        self.function = function
        self.done = done
        self.began = 0.0
        self.limit: asyncio.TimerHandle | None = None
        self.stuck = False
        self.thread: _Thread | None = None


class _Thread:
    """A thread that runs the calls that it is given, until it is given None.

    Args:
        name: the thread's name.
        ended: called on the thread with each call, its result and its error.
        idle: called on the thread after each half second without a call.
    """

    def __init__(
        self,
        name: str,
        ended: Callable[[_Call, Any, BaseException | None], None],
        idle: Callable[[_Thread], None],
    ) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._ended, self._idle = ended, idle
        # A daemon thread: the process can exit while the thread is stuck.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """RuntimeError if the system refuses another thread."""
        self._thread.start()

    def give(self, call: _Call | None) -> None:
        self._calls.put(call)

    def join(self) -> None:
        self._thread.join()

    def place(self) -> str:
        """The place in the code that the thread is at."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "an unknown place" if frame is None else f"{frame.f_code.co_qualname}:{frame.f_lineno}"

    def _run(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=_IDLE_S)
            except queue.Empty:
                self._idle(self)
                continue
            if call is None:
                return
            self._ended(call, *_outcome(call.function))
            del call  # it may refer to gigabytes


class BoundedThreads:
    """Runs a few calls at a time, on threads. Loop's thread only.

    Args:
        name: the name of the threads.
        threads: how many calls run at a time; others wait for their turn, in order.
        timeout_s: how long one call may run.
        most_stuck: how many calls may have exceeded that and still run.
    """

    def __init__(self, name: str, threads: int, timeout_s: float, most_stuck: int) -> None:
        self._name = name
        self._threads = threads
        self._timeout_s = timeout_s
        self._most_stuck = most_stuck
        self._waiting: deque[_Call] = deque()
        self._running: set[_Call] = set()
        self._stuck: set[_Call] = set()
        self._idle: list[_Thread] = []

    @property
    def stuck(self) -> int:
        """The number of threads whose calls were given up and still run."""
        return len(self._stuck)

    async def call(self, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function on a thread, and returns its result.

        Args:
            what: what the call does, for the log and the client: ``loading model 'm'``.
            function: called with the other arguments.

        Raises:
            ApiError: 504 if the call exceeds the time limit; 503 if it is not begun because too many others are stuck.
        """
        self._check()
        loop = asyncio.get_running_loop()
        call = _Call(what, lambda: function(*args, **kwargs), loop.create_future())
        self._waiting.append(call)
        self._begin()
        try:
            result: T = await call.done
            return result
        finally:
            if call in self._waiting:
                self._waiting.remove(call)

    def _check(self) -> None:
        if len(self._stuck) >= self._most_stuck:
            raise self._refusal()

    def _refusal(self) -> ApiError:
        first = next(iter(self._stuck)).what
        return ApiError(503, f"{len(self._stuck)} calls have not returned, the first of them {first}", retry_after_s=10)

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._threads:
            call = self._waiting.popleft()
            loop = call.done.get_loop()
            call.began = time.monotonic()
            call.limit = loop.call_later(self._timeout_s, self._give_up, call)
            self._running.add(call)
            try:
                call.thread = self._idle.pop() if self._idle else self._new_thread(loop)
            except RuntimeError:  # the system refuses another thread
                self._ended(call, None, ApiError(503, f"{call.what}: no thread can be started", retry_after_s=1))
            else:
                call.thread.give(call)

    def _new_thread(self, loop: asyncio.AbstractEventLoop) -> _Thread:
        def on_loop(function: Callable[..., None], *args: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(function, *args)

        thread = _Thread(self._name, partial(on_loop, self._ended), partial(on_loop, self._retire))
        thread.start()
        return thread

    def _retire(self, thread: _Thread) -> None:
        """Ends a thread that was idle, unless it was given a call meanwhile."""
        if thread in self._idle:
            self._idle.remove(thread)
            thread.give(None)

    def _ended(self, call: _Call, result: Any, error: BaseException | None) -> None:
        if call.limit is not None:
            call.limit.cancel()
        if call.thread is not None:
            self._idle.append(call.thread)
        if call.stuck:
            self._stuck.discard(call)
            log.warning("%s: has returned after all, after %.0f s", call.what, time.monotonic() - call.began)
            return
        self._running.discard(call)
        if not call.done.done():
            if error is None:
                call.done.set_result(result)
            else:
                call.done.set_exception(error)
        self._begin()

    def _give_up(self, call: _Call) -> None:
        call.stuck = True
        self._running.discard(call)
        self._stuck.add(call)
        message = f"{call.what} has not ended in {self._timeout_s:g} s"
        place = "an unknown place" if call.thread is None else call.thread.place()
        log.error("%s: it is given up, at %s; its thread keeps running", message, place)
        if not call.done.done():
            call.done.set_exception(ApiError(504, message))
        if len(self._stuck) >= self._most_stuck:
            log.error("no further calls of this kind are begun until one of %d returns", len(self._stuck))
            for waiting in self._waiting:
                if not waiting.done.done():
                    waiting.done.set_exception(self._refusal())
            self._waiting.clear()
        self._begin()

    def join(self) -> None:
        """Waits for the running calls, except for stuck ones; no call may be begun afterwards."""
        threads = [*self._idle, *(call.thread for call in self._running if call.thread is not None)]
        for thread in threads:
            thread.give(None)
        for thread in threads:
            thread.join()


def _outcome(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """A function's result or error."""
    try:
        return function(), None
    except BaseException as error:
        _clear_frames(error)
        return None, error


def _clear_frames(error: BaseException | None) -> None:
    """Clears the frames that an exception and its causes refer to. Otherwise a refused model, perhaps gigabytes, stays
    in memory until the cyclic collector visits old objects, which on a server may be never."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        error = pending.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            pending += [error.__cause__, error.__context__]
