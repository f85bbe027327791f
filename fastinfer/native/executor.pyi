"""Native threads that run jobs without the GIL."""

from collections.abc import Callable
from typing import Any, TypeVar

from fastinfer.native.job import Job

_J = TypeVar("_J", bound=Job)

class Share:
    """What competes for an executor's threads: a model's runs, or data work of one kind. The next job is one of the
    share with the fewest running; the last free thread is kept for shares of which nothing runs."""

    @property
    def running(self) -> int: ...

class Executor:
    """Native threads, and the jobs that wait for them by share. All methods belong to one thread, the event loop's.

    The loop watches the completions: ``loop.add_reader(executor, executor.drain)``.

    Args:
        threads: how many; ValueError below 1, OSError where they cannot be started.
        loop_fd: the file in which the event loop waits; long jobs offer their core while it has something to read.
        call_later: the event loop's. Jobs that have run for 0.1 s are put behind the others: as many as there are cores
            but one keep their priority. While shares of which nothing runs wait for a thread, they lose their places,
            too, and further threads (at most four for each of ``threads``) serve the others. None: nothing of this.
        processes: that share the cores.
    """

    threads: int
    brief: Share
    """Of data work that takes about a millisecond."""
    bulk: Share
    """Of data work that takes longer."""
    def __init__(
        self,
        threads: int,
        loop_fd: int = -1,
        call_later: Callable[[float, Callable[[], None]], Any] | None = None,
        processes: int = 1,
    ) -> None: ...
    def submit(self, job: _J, done: Callable[[_J], Any] | None = None, share: Share | None = None) -> None:
        """Queues ``job``; ``done`` (or ``job.done``) is called with it by :meth:`drain` after its end.

        ``share``: by default :attr:`brief`.

        Raises:
            RuntimeError: the executor is closed.
            ValueError: the job is under way already.
        """
    def drain(self) -> None:
        """Tells the ends of all jobs that have ended. What a ``done`` raises goes to ``sys.unraisablehook``."""
    def __len__(self) -> int:
        """The jobs whose end was not told yet."""
    def fileno(self) -> int:
        """Readable when a job has ended that :meth:`drain` has not told yet."""
    @property
    def queued(self) -> int:
        """Jobs that wait for a thread."""
    @property
    def running(self) -> int: ...
    @property
    def displaced(self) -> int:
        """Jobs that run outside of their place."""
    def close(self) -> None:
        """Takes no more jobs, waits for those that run, tells their ends, and ends the threads.

        Jobs that wait are given up: their ``done`` is not called. May be called again. An executor that is still open
        when the interpreter exits is closed then, after ``terminate()`` on its jobs that have it.
        """
