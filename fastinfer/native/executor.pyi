"""Native threads that run jobs without the GIL."""

from collections.abc import Callable
from typing import Any, TypeVar

from fastinfer.native.job import Job

_J = TypeVar("_J", bound=Job)

class Share:
    """A scheduling class of an executor's threads: one model's runs, or data work of one kind. The next job comes from
    the share with the fewest running jobs; the last free thread is reserved for shares without a running job."""

    @property
    def running(self) -> int: ...

class Executor:
    """Native threads, and a queue of jobs for each share. All methods are for the event loop's thread.

    The loop watches the completions: ``loop.add_reader(executor, executor.drain)``.

    Args:
        threads: their number; ValueError below 1, OSError if they cannot be started.
        loop_fd: the event loop's epoll descriptor; long jobs yield their core if an event waits there.
        call_later: the event loop's. Of the jobs that have run for 50 ms, all but (cores - 1) get a lower priority.
            While shares without a running job wait for a thread, such jobs also stop counting against ``threads``,
            and extra threads (at most four for each of ``threads``) serve the others. None: jobs are not demoted.
        processes: the number of processes that share the cores.
    """

    threads: int
    brief: Share
    """The share of data work that takes about a millisecond."""
    bulk: Share
    """The share of longer data work."""
    def __init__(
        self,
        threads: int,
        loop_fd: int = -1,
        call_later: Callable[[float, Callable[[], None]], Any] | None = None,
        processes: int = 1,
    ) -> None: ...
    def submit(self, job: _J, done: Callable[[_J], Any] | None = None, share: Share | None = None) -> None:
        """Queues ``job``; ``done`` (or ``job.done``) is called with it by :meth:`drain` after it has ended.

        ``share``: by default :attr:`brief`.

        Raises:
            RuntimeError: the executor is closed.
            ValueError: the job is under way already.
        """
    def drain(self) -> None:
        """Calls the callbacks of all jobs that have ended. Their exceptions go to ``sys.unraisablehook``."""
    def __len__(self) -> int:
        """Jobs whose callback was not called yet."""
    def fileno(self) -> int:
        """Readable if a job has ended since the last :meth:`drain`."""
    @property
    def queued(self) -> int:
        """Jobs that wait for a thread."""
    @property
    def running(self) -> int: ...
    @property
    def displaced(self) -> int:
        """Running jobs that do not count against ``threads``."""
    def close(self) -> None:
        """Refuses new jobs, waits for running ones, calls their callbacks, and joins the threads.

        Queued jobs are discarded without a callback. May be called again. An executor that is still open
        when the interpreter exits is closed then, after ``terminate()`` on its jobs that have it.
        """
